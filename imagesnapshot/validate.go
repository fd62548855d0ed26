package imagesnapshot

import (
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"unicode/utf8"

	"github.com/containerd/errdefs"
	"github.com/containerd/platforms"
	"github.com/distribution/reference"
)

// FieldError says which value is illegal. Its class is errdefs.ErrInvalidArgument.
type FieldError struct {
	// Field as JSON names it, such as spec.registries[2].server.
	Field string
	// Detail says what is wrong and what is allowed.
	Detail string
}

func (e *FieldError) Error() string { return e.Field + ": " + e.Detail }

// Unwrap returns the class.
func (e *FieldError) Unwrap() error { return errdefs.ErrInvalidArgument }

// problems collects the illegal values of one object, so that a user hears of all at once.
type problems []error

func (p *problems) add(field, format string, args ...any) {
	*p = append(*p, &FieldError{Field: field, Detail: fmt.Sprintf(format, args...)})
}

func (p *problems) number(field string, got, low, high int, unit string) {
	if got < low || got > high {
		p.add(field, "%d is not from %d to %d%s", got, low, high, unit)
	}
}

// Complete fills in defaults and normalises references. It does not check: Validate does, also what cannot be
// normalised.
func (s *ImageSnapshot) Complete(l Limits) {
	sp := &s.Spec
	for i, image := range sp.Images {
		if named, err := reference.ParseDockerRef(image); err == nil {
			sp.Images[i] = named.String()
		}
	}
	for i, p := range sp.Platforms {
		if parsed, err := platforms.Parse(p); err == nil {
			sp.Platforms[i] = platforms.FormatAll(platforms.Normalize(parsed))
		}
	}
	if sp.Size.GiB == 0 && !sp.Size.AsNeeded {
		sp.Size.GiB = l.DefaultSizeGiB
	}
	if sp.Build.TimeoutMinutes == 0 {
		sp.Build.TimeoutMinutes = l.DefaultTimeoutMinutes
	}
	if sp.Copies.Standard == 0 {
		sp.Copies.Standard = 1
	}
	if sp.Copies.Flash == 0 {
		sp.Copies.Flash = 1
	}
	if s.Origin == "" {
		s.Origin = OriginManual
	}
	s.dropEmpty()
}

// dropEmpty makes equal what is equal once it has been stored and read.
func (s *ImageSnapshot) dropEmpty() {
	sp := &s.Spec
	if len(sp.Platforms) == 0 {
		sp.Platforms = nil
	}
	if len(sp.Registries) == 0 {
		sp.Registries = nil
	}
	if len(sp.Build.DNSServers) == 0 {
		sp.Build.DNSServers = nil
	}
	if len(sp.Build.Parameters) == 0 {
		sp.Build.Parameters = nil
	}
	if len(s.Labels) == 0 {
		s.Labels = nil
	}
	if len(s.Annotations) == 0 {
		s.Annotations = nil
	}
}

// Validate refuses every illegal value by its field. The error joins FieldErrors, in the order of the fields, and its
// class is errdefs.ErrInvalidArgument.
func (s *ImageSnapshot) Validate(l Limits) error {
	var p problems
	if err := CheckName(s.Name); err != nil {
		p = append(p, err)
	}
	s.validate(&p)
	s.Spec.validate(&p, l)
	return errors.Join(p...)
}

// CheckName wants what all front ends can show: 1 to 128 of a-z, 0-9 and '-', beginning with a letter, not ending
// with '-'. The error is a FieldError.
func CheckName(name string) error {
	ok := name != "" && len(name) <= MaxNameBytes && name[0] >= 'a' && name[0] <= 'z' && name[len(name)-1] != '-'
	for i := range len(name) {
		c := name[i]
		ok = ok && (c >= 'a' && c <= 'z' || c >= '0' && c <= '9' || c == '-')
	}
	if ok {
		return nil
	}
	return &FieldError{"name", fmt.Sprintf("%q is not 1 to %d of a-z, 0-9 and '-', beginning with a letter and not ending with '-'",
		shortForMessage(name), MaxNameBytes)}
}

func (m *Metadata) validate(p *problems) {
	if len(m.Owner) > maxOwnerBytes || hasControl(m.Owner) {
		p.add("owner", "is not at most %d bytes of UTF-8 without control characters", maxOwnerBytes)
	}
	if m.Origin != OriginManual && m.Origin != OriginAutomatic {
		p.add("origin", "%q is neither %s nor %s", shortForMessage(string(m.Origin)), OriginManual, OriginAutomatic)
	}
	if len(m.ClientToken) > MaxClientTokenBytes || strings.ContainsFunc(m.ClientToken, func(r rune) bool { return r < '!' || r > '~' }) {
		p.add("clientToken", "is not at most %d visible ASCII characters", MaxClientTokenBytes)
	}
	if len(m.Labels) > MaxLabels {
		p.add("labels", "%d, at most %d are allowed", len(m.Labels), MaxLabels)
	}
	for k, v := range m.Labels {
		if k == "" || len(k) > maxLabelKeyBytes || hasControl(k) || len(v) > maxLabelValueBytes || hasControl(v) {
			p.add("labels", "%q: want a key of 1 to %d bytes and a value of at most %d, both UTF-8 without control characters",
				shortForMessage(k), maxLabelKeyBytes, maxLabelValueBytes)
		}
	}
	size := 0
	for k, v := range m.Annotations {
		size += len(k) + len(v)
		if k == "" || !utf8.ValidString(k) || !utf8.ValidString(v) {
			p.add("annotations", "%q: the key is empty, or key or value is not UTF-8", shortForMessage(k))
		}
	}
	if len(m.Annotations) > maxAnnotations || size > maxAnnotationsBytes {
		p.add("annotations", "%d of %d bytes, at most %d of %d bytes are allowed", len(m.Annotations), size, maxAnnotations, maxAnnotationsBytes)
	}
}

func (sp *Spec) validate(p *problems, l Limits) {
	sp.validateImages(p, l)
	switch {
	case sp.Size.AsNeeded && sp.Size.GiB != 0:
		p.add("spec.size", "%d GiB and as needed exclude each other", sp.Size.GiB)
	case !sp.Size.AsNeeded:
		p.number("spec.size.gib", sp.Size.GiB, l.MinSizeGiB, l.MaxSizeGiB, " GiB")
	}
	p.number("spec.retentionDays", sp.RetentionDays, 0, MaxRetentionDays, " days (0 is for ever)")
	sp.validateRegistries(p)
	p.number("spec.build.timeoutMinutes", sp.Build.TimeoutMinutes, MinTimeoutMinutes, MaxTimeoutMinutes, " minutes")
	if len(sp.Build.DNSServers) > maxDNSServers {
		p.add("spec.build.dnsServers", "%d, at most %d are allowed", len(sp.Build.DNSServers), maxDNSServers)
	}
	for i, server := range sp.Build.DNSServers {
		if _, err := netip.ParseAddr(server); err != nil {
			p.add(fmt.Sprintf("spec.build.dnsServers[%d]", i), "%q is no IP address", shortForMessage(server))
		}
	}
	size := 0
	for k, v := range sp.Build.Parameters {
		size += len(k) + len(v)
		if k == "" || !utf8.ValidString(k) || !utf8.ValidString(v) {
			p.add("spec.build.parameters", "%q: the key is empty, or key or value is not UTF-8", shortForMessage(k))
		}
	}
	if len(sp.Build.Parameters) > maxParameters || size > maxParameterBytes {
		p.add("spec.build.parameters", "%d of %d bytes, at most %d of %d bytes are allowed", len(sp.Build.Parameters), size, maxParameters, maxParameterBytes)
	}
	if sp.Elimination != EliminationNone && sp.Elimination != EliminationLRU {
		p.add("spec.elimination", "%q is neither empty nor %s", shortForMessage(string(sp.Elimination)), EliminationLRU)
	}
	p.number("spec.copies.standard", sp.Copies.Standard, 1, MaxCopies, "")
	p.number("spec.copies.flash", sp.Copies.Flash, 1, MaxCopies, "")
}

func (sp *Spec) validateImages(p *problems, l Limits) {
	if len(sp.Images) == 0 || len(sp.Images) > l.MaxImages {
		p.add("spec.images", "%d images, allowed are 1 to %d", len(sp.Images), l.MaxImages)
	}
	seen := make(map[string]bool)
	for i, image := range sp.Images {
		field := fmt.Sprintf("spec.images[%d]", i)
		named, err := reference.ParseDockerRef(image)
		switch {
		case len(image) > maxReferenceBytes:
			p.add(field, "%d bytes, at most %d are allowed", len(image), maxReferenceBytes)
		case err != nil:
			p.add(field, "%q is no image reference: %v", shortForMessage(image), err)
		case seen[named.String()]:
			p.add(field, "%q is listed twice", image)
		default:
			seen[named.String()] = true
		}
	}
	if len(sp.Platforms) > maxPlatforms {
		p.add("spec.platforms", "%d, at most %d are allowed", len(sp.Platforms), maxPlatforms)
	}
	for i, text := range sp.Platforms {
		if _, err := platforms.Parse(text); err != nil || len(text) > maxOwnerBytes {
			p.add(fmt.Sprintf("spec.platforms[%d]", i), "%q is no platform such as linux/amd64", shortForMessage(text))
		}
	}
}

func (sp *Spec) validateRegistries(p *problems) {
	if len(sp.Registries) > MaxRegistries {
		p.add("spec.registries", "%d, at most %d are allowed", len(sp.Registries), MaxRegistries)
	}
	seen := make(map[string]bool)
	for i, r := range sp.Registries {
		field := fmt.Sprintf("spec.registries[%d]", i)
		named, err := reference.ParseNormalizedNamed(r.Server + "/x")
		switch {
		case strings.Contains(r.Server, "://"):
			p.add(field+".server", "%q has a scheme; write host[:port] and use plainHTTP for http", shortForMessage(r.Server))
		case err != nil || reference.Domain(named) != r.Server:
			p.add(field+".server", "%q is not host[:port] as in image references", shortForMessage(r.Server))
		case seen[r.Server]:
			p.add(field+".server", "%q is listed twice", r.Server)
		}
		seen[r.Server] = true
		if len(r.Secret) > maxSecretBytes || strings.ContainsFunc(r.Secret, func(c rune) bool {
			return c != '.' && c != '-' && c != '_' && c != ':' && (c < 'a' || c > 'z') && (c < 'A' || c > 'Z') && (c < '0' || c > '9')
		}) {
			// What is no name may be the secret itself: it is not repeated.
			p.add(field+".secret", "is not the name of a secret: at most %d of a-z, A-Z, 0-9, '.', '-', '_' and ':'", maxSecretBytes)
		}
		if r.PlainHTTP && r.InsecureSkipVerify {
			p.add(field, "plainHTTP and insecureSkipVerify exclude each other: plain HTTP has no certificate to skip")
		}
	}
}

// Warnings are remarks on values that are legal but rarely right. imageBytes is the unpacked size of all images, 0 if
// it is not known yet.
func (s *ImageSnapshot) Warnings(imageBytes int64) []string {
	var w []string
	const wanted = 3
	if size := int64(s.Spec.Size.GiB) << 30; imageBytes > 0 && !s.Spec.Size.AsNeeded && size < wanted*imageBytes {
		w = append(w, fmt.Sprintf("spec.size.gib: %d GiB is less than %d times the %.1f GiB of the images; the build may not fit, or the next update",
			s.Spec.Size.GiB, wanted, float64(imageBytes)/(1<<30)))
	}
	if s.Spec.Flash && s.Spec.Copies.Flash > s.Spec.Copies.Standard {
		w = append(w, "spec.copies: fewer standard copies than flash copies: nodes have fewer sources once the flash copies are gone")
	}
	if !s.Spec.Flash && s.Spec.Copies.Flash > 1 {
		w = append(w, "spec.copies.flash: has no effect without spec.flash")
	}
	return w
}

func hasControl(s string) bool {
	return !utf8.ValidString(s) || strings.ContainsFunc(s, func(r rune) bool { return r < ' ' || r == 0x7f })
}

// shortForMessage keeps hostile values from filling messages.
func shortForMessage(s string) string {
	const most = 80
	if len(s) <= most {
		return s
	}
	return s[:most] + "…"
}
