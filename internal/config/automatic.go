package config

import (
	"fmt"
	"strings"
	"time"
)

// Automatic is about image snapshots that are made of images which pulls want and no image snapshot has.
type Automatic struct {
	// Enabled makes them. Off, because whoever can have this node pull an image then has a disk made of it.
	Enabled bool `toml:"enabled"`
	// Owner of them.
	Owner string `toml:"owner"`
	// Quota of them; the least recently used makes room. 0 is no limit but image_snapshots.quota.
	Quota int `toml:"quota"`
	// MinImageMiB is the smallest image that is worth it, compressed.
	MinImageMiB int `toml:"min_image_mib"`
	// Allow and Deny are beginnings of references; an empty Allow allows all that Deny does not name.
	Allow []string `toml:"allow"`
	Deny  []string `toml:"deny"`
	// Delay after the last question of a pull.
	Delay Duration `toml:"delay"`
	// Retry is when an image is looked at again that was too small or could not be seen.
	Retry Duration `toml:"retry"`
	// Registries that builds speak to in another way than https without credentials.
	Registries []AutomaticRegistry `toml:"registry"`
}

// AutomaticRegistry says how builds of automatic image snapshots speak to one registry.
type AutomaticRegistry struct {
	// Server is host[:port], as in references.
	Server string `toml:"server"`
	// Secret is the name of credentials in image_snapshots.secrets_directory, among those of the owner.
	Secret string `toml:"secret"`
	// PlainHTTP is for registries without TLS, InsecureSkipVerify for those without a valid certificate.
	PlainHTTP          bool `toml:"plain_http"`
	InsecureSkipVerify bool `toml:"insecure_skip_verify"`
}

func defaultAutomatic() Automatic {
	return Automatic{
		Owner: "automatic", Quota: 20, MinImageMiB: 256, Allow: []string{}, Deny: []string{},
		Delay: Duration(time.Minute), Retry: Duration(24 * time.Hour),
	}
}

// check names every key whose value cannot be used.
func (a *Automatic) check() []error {
	var errs []error
	refuse := func(key, format string, args ...any) {
		errs = append(errs, fmt.Errorf("automatic.%s: %w", key, fmt.Errorf(format, args...)))
	}
	const (
		maxOwner      = 256
		maxMiB        = 1 << 24
		maxRegistries = 10 // imagesnapshot.MaxRegistries
		maxDelay      = time.Hour
	)
	if len(a.Owner) > maxOwner || strings.ContainsFunc(a.Owner, func(r rune) bool { return r < ' ' || r == 0x7f }) {
		refuse("owner", "want at most %d bytes without control characters", maxOwner)
	}
	if a.Quota < 0 || a.Quota > 1<<20 {
		refuse("quota", "%d is not from 0 to %d", a.Quota, 1<<20)
	}
	if a.MinImageMiB < 0 || a.MinImageMiB > maxMiB {
		refuse("min_image_mib", "%d is not from 0 to %d", a.MinImageMiB, maxMiB)
	}
	if d := a.Delay.Std(); d < 0 || d > maxDelay {
		refuse("delay", "%s is not from 0s to %s", a.Delay, maxDelay)
	}
	if a.Retry.Std() < time.Minute {
		refuse("retry", "%s is less than 1m", a.Retry)
	}
	for key, list := range map[string][]string{"allow": a.Allow, "deny": a.Deny} {
		for _, prefix := range list {
			if !beginsReference(prefix) {
				refuse(key, "%q is no beginning of a reference; it has the registry's host first, such as docker.io/library or registry.example:5000/team", prefix)
			}
		}
	}
	if len(a.Registries) > maxRegistries {
		refuse("registry", "%d, at most %d are allowed", len(a.Registries), maxRegistries)
	}
	for i, r := range a.Registries {
		if r.Server == "" || strings.ContainsAny(r.Server, "/ ") {
			refuse(fmt.Sprintf("registry[%d].server", i), "%q is not host[:port]", r.Server)
		}
	}
	return errs
}

// beginsReference wants a host first, because that is how references are compared: nginx alone would never be found in
// docker.io/library/nginx.
func beginsReference(prefix string) bool {
	host, _, _ := strings.Cut(prefix, "/")
	return (strings.ContainsAny(host, ".:") || host == "localhost") && !strings.ContainsAny(prefix, " \t\n@") && !strings.Contains(prefix, "//")
}
