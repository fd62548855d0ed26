package automatic

import (
	"slices"
	"strings"
)

// allows says whether the configuration lets an image have an image snapshot, by its normalised reference.
func (c *Config) allows(ref string) bool {
	begins := func(prefix string) bool { return hasPrefix(ref, prefix) }
	return !slices.ContainsFunc(c.Deny, begins) && (len(c.Allow) == 0 || slices.ContainsFunc(c.Allow, begins))
}

// hasPrefix wants whole components: registry.example/team is the beginning of registry.example/team/app and of
// registry.example/team:1, and not of registry.example/teammates.
func hasPrefix(ref, prefix string) bool {
	rest, ok := strings.CutPrefix(ref, strings.TrimSuffix(prefix, "/"))
	return ok && (rest == "" || strings.ContainsRune("/:@", rune(rest[0])))
}
