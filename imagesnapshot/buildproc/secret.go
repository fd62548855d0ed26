package buildproc

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net/url"
	"os"
	"path/filepath"
	"strings"

	"github.com/containerd/errdefs"

	"berth.dev/berth/imagesnapshot"
)

// SecretSource finds credentials by the names that specs have for them.
type SecretSource interface {
	// DockerConfig returns a config.json of docker, as a Kubernetes secret of type kubernetes.io/dockerconfigjson holds
	// it; NotFound. Only what belongs to the owner may be given.
	DockerConfig(ctx context.Context, owner, name string) ([]byte, error)
}

// SecretDir is a SecretSource of files, readable for root alone: NAME.json for those without an owner,
// owner-OWNER/NAME.json, the owner escaped as in a URL, for those of one.
type SecretDir string

var _ SecretSource = SecretDir("")

const maxSecretBytes = 1 << 20

// DockerConfig reads a file. One that others can read is FailedPrecondition.
func (d SecretDir) DockerConfig(_ context.Context, owner, name string) ([]byte, error) {
	dir := string(d)
	if owner != "" {
		dir = filepath.Join(dir, "owner-"+url.PathEscape(owner))
	}
	if name == "" || name != filepath.Base(name) {
		return nil, fmt.Errorf("secret %q: %w", name, errdefs.ErrInvalidArgument)
	}
	path := filepath.Join(dir, name+".json")
	info, err := os.Stat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("secret %s: there is no %s: %w", name, path, errdefs.ErrNotFound)
	}
	if err != nil {
		return nil, fmt.Errorf("secret %s: %w", name, err)
	}
	if info.Mode().Perm()&0o077 != 0 || !info.Mode().IsRegular() || info.Size() > maxSecretBytes {
		return nil, fmt.Errorf("secret %s: %s has to be a file of at most %d bytes that nobody but its owner can read (chmod 600): %w", name, path, maxSecretBytes, errdefs.ErrFailedPrecondition)
	}
	b, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("secret %s: %w", name, err)
	}
	return b, nil
}

// dockerAuth is one registry in a config.json.
type dockerAuth struct {
	Auth          string `json:"auth,omitempty"`
	Username      string `json:"username,omitempty"`
	Password      string `json:"password,omitempty"`
	IdentityToken string `json:"identitytoken,omitempty"`
}

type dockerConfig struct {
	Auths map[string]dockerAuth `json:"auths"`
}

// secrets are all strings of an entry that must appear nowhere.
func (a dockerAuth) secrets() []string {
	list := []string{a.Auth, a.Password, a.IdentityToken}
	if decoded, err := base64.StdEncoding.DecodeString(a.Auth); err == nil {
		_, password, _ := strings.Cut(string(decoded), ":")
		list = append(list, string(decoded), strings.TrimRight(password, "\x00"))
	}
	return list
}

// credentials joins what the registries of a spec need into one config.json, each registry with the entry for itself
// alone.
func (b *Builder) credentials(ctx context.Context, owner string, registries []imagesnapshot.Registry) (encoded []byte, secrets []string, err error) {
	joined := dockerConfig{Auths: make(map[string]dockerAuth)}
	for _, r := range registries {
		if r.Secret == "" {
			continue
		}
		if b.cfg.Secrets == nil {
			return nil, nil, fmt.Errorf("registry %s: secret %s: there is no place for secrets configured: %w", r.Server, r.Secret, errdefs.ErrFailedPrecondition)
		}
		raw, err := b.cfg.Secrets.DockerConfig(ctx, owner, r.Secret)
		if err != nil {
			return nil, nil, fmt.Errorf("registry %s: %w", r.Server, err)
		}
		var config dockerConfig
		if json.Unmarshal(raw, &config) != nil { // the error would quote it
			return nil, nil, fmt.Errorf("registry %s: secret %s is no docker configuration in JSON: %w", r.Server, r.Secret, errdefs.ErrInvalidArgument)
		}
		auth, ok := lookUp(config, r.Server)
		if !ok {
			return nil, nil, fmt.Errorf("registry %s: secret %s has no credentials for it: %w", r.Server, r.Secret, errdefs.ErrNotFound)
		}
		joined.Auths[keyOf(r.Server)] = auth
		secrets = append(secrets, auth.secrets()...)
	}
	encoded, err = json.Marshal(joined)
	return encoded, secrets, err
}

const dockerHubKey = "https://index.docker.io/v1/"

// keyOf is how a config.json knows a registry.
func keyOf(server string) string {
	switch server {
	case "docker.io", "index.docker.io", "registry-1.docker.io":
		return dockerHubKey
	}
	return server
}

func lookUp(c dockerConfig, server string) (dockerAuth, bool) {
	for _, key := range []string{keyOf(server), server, "https://" + server, "https://" + server + "/", "https://" + server + "/v1/", "https://" + server + "/v2/", "http://" + server} {
		if auth, ok := c.Auths[key]; ok {
			return auth, true
		}
	}
	return dockerAuth{}, false
}
