package control

import (
	"time"

	"github.com/opencontainers/go-digest"

	"berth.dev/berth/layerdisk"
)

// Choice is one choice of image snapshots whose disks are attached for a pull, and what came of it.
type Choice struct {
	Time time.Time
	// ChainID of the layer that no attached disk had.
	ChainID digest.Digest
	// Reason in words.
	Reason string
	// Waited is how long the pull waited for Disks.
	Waited     time.Duration
	Disks      []ChosenDisk
	Candidates []Candidate
}

// ChosenDisk was being attached for a pull.
type ChosenDisk struct {
	ImageSnapshot, Disk string
	// Result is "ready", "late", "failed" or "no-room"; Error says more of the last two.
	Result, Error string
}

// Candidate is an image snapshot that was looked at.
type Candidate struct {
	Name, ID, Verdict, Why string
}

// Choices remembers how disks were chosen for pulls.
type Choices interface {
	// LastChoice for an image by its normalised reference, or, where containerd did not name the image, by the chain
	// IDs of its layers; nil if there was none or it is forgotten.
	LastChoice(imageRef string, chainIDs []digest.Digest) *Choice
}

// WithChoices lets the service tell of choices, which it does not know otherwise. It is for before serving.
func (s *Service) WithChoices(c Choices) *Service {
	s.choices = c
	return s
}

// LastChoice of disks for a pull of the image with these layers; nil if there was none or it is forgotten. An image
// without a name has none.
func (s *Service) LastChoice(imageRef string, layers []layerdisk.LayerName) *Choice {
	if s.choices == nil || imageRef == "" {
		return nil
	}
	chainIDs := make([]digest.Digest, 0, len(layers))
	for _, l := range layers {
		chainIDs = append(chainIDs, l.ChainID)
	}
	return s.choices.LastChoice(imageRef, chainIDs)
}
