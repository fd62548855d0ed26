package layerdisk

import (
	"bytes"
	"crypto/sha256"
	"encoding/json"
	"fmt"

	"github.com/containerd/errdefs"
	"github.com/google/uuid"
)

// uuidSpace is the name space of disk UUIDs: any constant would do, this one was drawn once.
const uuidSpace = "7d0f5a3e-2c64-4b1b-9a57-c6f2b1c0d9e4"

// Seal completes an index whose content is settled: it sets FormatVersion and UUID and returns the encoded bytes, which
// are the ones to store. The UUID follows from the rest of the index, so the same content gives the same bytes. An
// index that Parse would refuse is errdefs.ErrInvalidArgument and stays unchanged.
func Seal(ix *Index) ([]byte, error) {
	sealed := *ix
	sealed.FormatVersion = fmt.Sprintf("%d.%d", MajorVersion, ix.minor())
	sealed.Created = sealed.Created.UTC()
	sealed.UUID = ""
	unnamed, err := marshal(sealed)
	if err != nil {
		return nil, err
	}
	// Version 8 of RFC 9562 (custom) because version 5 would tie the name to SHA-1; appendix B.2 there is the same
	// idea.
	sealed.UUID = uuid.NewHash(sha256.New(), uuid.MustParse(uuidSpace), unnamed, 8).String()
	encoded, err := Encode(sealed)
	if err != nil {
		return nil, err
	}
	*ix = sealed
	return encoded, nil
}

// Encode gives the one canonical encoding of an index: JSON without white space, fields in the order of the types here,
// ending in a newline. An index that Parse would refuse is errdefs.ErrInvalidArgument.
func Encode(ix Index) ([]byte, error) {
	if err := ix.Validate(); err != nil {
		return nil, fmt.Errorf("encode index: %w", err)
	}
	b, err := marshal(ix)
	if err != nil {
		return nil, err
	}
	if len(b) > MaxIndexBytes {
		return nil, fmt.Errorf("encode index: %d bytes, at most %d are allowed: put fewer images on the disk: %w",
			len(b), MaxIndexBytes, errdefs.ErrInvalidArgument)
	}
	return b, nil
}

// marshal writes empty lists as [] and times in UTC, so that equal content has equal bytes.
func marshal(ix Index) ([]byte, error) {
	ix.Created = ix.Created.UTC()
	if ix.Images == nil {
		ix.Images = []Image{}
	}
	if ix.Chains == nil {
		ix.Chains = []Chain{}
	}
	layers := make([]Layer, len(ix.Layers))
	for i, l := range ix.Layers {
		if l.Blobs == nil {
			l.Blobs = []Blob{}
		}
		layers[i] = l
	}
	ix.Layers = layers
	var buf bytes.Buffer
	enc := json.NewEncoder(&buf)
	enc.SetEscapeHTML(false)
	if err := enc.Encode(ix); err != nil {
		return nil, fmt.Errorf("encode index: %w: %w", err, errdefs.ErrInvalidArgument)
	}
	return buf.Bytes(), nil
}
