package matcher_test

import (
	"fmt"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	"github.com/stretchr/testify/require"

	. "berth.dev/berth/matcher"

	"berth.dev/berth/layerdisk"
)

var (
	amd64 = Platform{OS: "linux", Architecture: "amd64"}
	arm64 = Platform{OS: "linux", Architecture: "arm64"}
	noon  = time.Date(2026, 6, 1, 12, 0, 0, 0, time.UTC)
)

// img makes an image from layers "name:compressed[:unpacked]", sizes in bytes. Its manifest digest stands for the
// reference and the layers, so that a moved tag gets another one.
func img(reference string, layers ...string) Image {
	i := Image{Reference: reference, Platform: amd64, ManifestDigest: digest.FromString(reference + fmt.Sprint(layers))}
	i.Layers = stack(layers...)
	return i
}

func stack(layers ...string) []Layer {
	out := make([]Layer, 0, len(layers))
	var chain digest.Digest
	for _, l := range layers {
		name, sizes, _ := strings.Cut(l, ":")
		compressed, unpacked, _ := strings.Cut(sizes, ":")
		diff := digest.FromString("layer " + name)
		if chain == "" {
			chain = diff
		} else {
			chain = digest.FromString(string(chain) + " " + string(diff))
		}
		c, _ := strconv.ParseInt(compressed, 10, 64)
		u, _ := strconv.ParseInt(unpacked, 10, 64)
		out = append(out, Layer{
			LayerName:       layerdisk.LayerName{ChainID: chain, DiffID: diff, Blob: digest.FromString("blob " + name)},
			CompressedBytes: c, UnpackedBytes: u,
		})
	}
	return out
}

// named takes away what only a resolved image has.
func named(i Image) Image {
	i.ManifestDigest, i.Layers = "", nil
	return i
}

func on(p Platform, i Image) Image {
	i.Platform = p
	return i
}

// snap makes an available candidate with the images, created a number of hours before noon.
func snap(name string, hoursOld int, images ...Image) Candidate {
	c := Candidate{
		Name: name, ID: "id-" + name, State: StateAvailable, Created: noon.Add(-time.Duration(hoursOld) * time.Hour),
	}
	seen := make(map[digest.Digest]bool)
	for _, i := range images {
		ci := CandidateImage{Reference: i.Reference, Platform: i.Platform, ManifestDigest: i.ManifestDigest}
		for _, l := range i.Layers {
			ci.SizeBytes += l.CompressedBytes
			if !seen[l.ChainID] {
				seen[l.ChainID] = true
				c.Layers = append(c.Layers, l)
			}
		}
		c.Images = append(c.Images, ci)
	}
	return c
}

// but changes a candidate.
func but(c Candidate, change func(*Candidate)) Candidate {
	change(&c)
	return c
}

func attached(c Candidate) Candidate { return but(c, func(c *Candidate) { c.Attached = true }) }

func fleet(t testing.TB, cs ...Candidate) *Index {
	t.Helper()
	x := NewIndex()
	for _, c := range cs {
		require.NoError(t, x.Put(c))
	}
	return x
}

func auto(images ...Image) Request {
	return Request{Images: images, Rules: Rules{AutoMatch: true}, Now: noon}
}

func ruled(r Request, change func(*Rules)) Request {
	change(&r.Rules)
	return r
}

func match(t testing.TB, x *Index, r Request) Decision {
	t.Helper()
	d, err := x.Match(r)
	require.NoError(t, err)
	return d
}

func names(d Decision) []string {
	out := []string{}
	for _, c := range d.Chosen {
		out = append(out, c.Name)
	}
	return out
}

// verdicts are those of all explained candidates by name.
func verdicts(d Decision) map[string]Verdict {
	out := make(map[string]Verdict)
	for _, c := range d.Candidates {
		out[c.Name] = c.Verdict
	}
	return out
}

func explained(t testing.TB, d Decision, name string) Explanation {
	t.Helper()
	for _, c := range d.Candidates {
		if c.Name == name {
			return c
		}
	}
	require.Failf(t, "not explained", "%s is not among %v", name, verdicts(d))
	return Explanation{}
}
