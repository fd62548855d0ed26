package layerdisk_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"testing"

	"berth.dev/berth/layerdisk"
	"berth.dev/berth/layerdisk/layerdisktest"
)

// FuzzParse wants every index that is accepted to survive being written and read again, and every refusal to have a
// class.
func FuzzParse(f *testing.F) {
	ix := layerdisktest.Index(layerdisk.FileSystemEROFS, testImages()...)
	encoded, err := layerdisk.Seal(ix)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(encoded)
	f.Add([]byte(`{"formatVersion":"2.0"}`))
	f.Add([]byte(`{"formatVersion":"1.0","images":null,"layers":[{}],"chains":[{"chainID":"sha256:"}]}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		ix, err := layerdisk.Parse(data)
		if err != nil {
			if !errors.Is(err, layerdisk.ErrCorrupt) && !errors.Is(err, layerdisk.ErrVersion) {
				t.Fatalf("error without a class: %v", err)
			}
			return
		}
		encoded, err := layerdisk.Encode(*ix)
		if err != nil {
			t.Fatalf("accepted, but cannot be written: %v", err)
		}
		again, err := layerdisk.Parse(encoded)
		if err != nil {
			t.Fatalf("written, but cannot be read: %v", err)
		}
		l := layerdisk.NewLookup(again)
		for _, img := range again.Images {
			if img.ChainID != "" && l.Stack(img.ChainID) == nil {
				t.Fatalf("image %s has no layers", img.Reference)
			}
		}
	})
}

// FuzzParseHeader sets the checksum right in half of the cases, or nothing behind it would ever be reached.
func FuzzParseHeader(f *testing.F) {
	ix := layerdisktest.Index(layerdisk.FileSystemEROFS)
	encoded, err := layerdisk.Seal(ix)
	if err != nil {
		f.Fatal(err)
	}
	header, err := layerdisk.NewHeader(ix, encoded, 4096, 1<<20).MarshalBinary()
	if err != nil {
		f.Fatal(err)
	}
	f.Add(header, true)
	f.Add(header[:100], false)
	f.Fuzz(func(t *testing.T, data []byte, fix bool) {
		data = bytes.Clone(data)
		if fix && len(data) >= layerdisk.HeaderBytes {
			reseal(data)
		}
		h, err := layerdisk.ParseHeader(data)
		if err != nil {
			if !errors.Is(err, layerdisk.ErrCorrupt) && !errors.Is(err, layerdisk.ErrVersion) && !errors.Is(err, layerdisk.ErrNotLayerDisk) {
				t.Fatalf("error without a class: %v", err)
			}
			return
		}
		b, err := h.MarshalBinary()
		if err != nil {
			t.Fatalf("accepted, but cannot be written: %v", err)
		}
		again, err := layerdisk.ParseHeader(b)
		if err != nil || again != h {
			t.Fatalf("%+v became %+v: %v", h, again, err)
		}
	})
}

// FuzzReadIndex reads whole devices.
func FuzzReadIndex(f *testing.F) {
	f.Add([]byte("BERTHDSK"), uint16(0))
	f.Add([]byte{0xff}, uint16(1024))
	f.Fuzz(func(t *testing.T, change []byte, at uint16) {
		const size = 1 << 16
		b := device(t, layerdisk.FileSystemEROFS)[:size]
		binary.LittleEndian.PutUint64(b[88:], size)
		copy(b[at:], change)
		reseal(b)
		// Errors are expected; what is looked for are panics and hangs.
		if ix, id, err := layerdisk.ReadIndex(bytes.NewReader(b)); err == nil && ix.UUID != id.UUID {
			t.Fatalf("identity %v of index %s", id, ix.UUID)
		}
	})
}
