package imagesnapshot

import (
	"crypto/sha256"
	"encoding/hex"
	"slices"
	"strings"

	"github.com/distribution/reference"
)

// AutomaticPrefix begins the names of automatic image snapshots.
const AutomaticPrefix = "auto-"

// AutomaticName is the one name of the automatic image snapshot of an owner for a set of images, whoever asks and in
// whatever order. It makes creation idempotent across nodes (E-5). References keep their digests, so a tag that moved
// makes another set where digests are known.
func AutomaticName(owner string, images, platforms []string) string {
	set := make([]string, 0, len(images))
	for _, image := range images {
		if named, err := reference.ParseDockerRef(image); err == nil {
			image = named.String()
		}
		set = append(set, image)
	}
	slices.Sort(set)
	where := slices.Clone(platforms)
	slices.Sort(where)
	// No part can hold the separators: NUL is in no reference, and the owner comes first.
	sum := sha256.Sum256([]byte(owner + "\x00\x00" + strings.Join(slices.Compact(set), "\x00") + "\x00\x00" + strings.Join(slices.Compact(where), "\x00")))
	return AutomaticPrefix + hex.EncodeToString(sum[:16])
}
