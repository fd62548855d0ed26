package catalog_test

import (
	"bytes"
	"encoding/json"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	"github.com/stretchr/testify/require"

	"berth.dev/berth/imagesnapshot/catalog"
	"berth.dev/berth/imagesnapshot/catalog/catalogtest"
	"berth.dev/berth/layerdisk"
	"berth.dev/berth/layerdisk/layerdisktest"
)

func sample(t testing.TB) []byte {
	data, err := catalog.Encode(catalogtest.Entry(t, "a", layerdisktest.Image{Reference: "docker.io/library/nginx:1", Layers: []string{"base"}}))
	require.NoError(t, err)
	return data
}

// C-3: one that has no disk is told of too, so that nodes can say why it is not used; it cannot be taken for one that
// has.
func TestEntryWithoutDisk(t *testing.T) {
	making := catalog.Entry{Name: "a", ID: "a", State: "Creating", Created: time.Unix(1700000000, 0).UTC(), Images: []string{"docker.io/library/nginx:1"}}
	data, err := catalog.Encode(making)
	require.NoError(t, err)
	back, err := catalog.Decode(data)
	require.NoError(t, err)
	require.Equal(t, making, back)
	require.False(t, back.HasDisk())

	whole := catalogtest.Entry(t, "a", layerdisktest.Image{Reference: "docker.io/library/nginx:1", Layers: []string{"base"}})
	for name, change := range map[string]func(*catalog.Entry){
		"available":    func(e *catalog.Entry) { e.State = catalog.StateAvailable },
		"a source":     func(e *catalog.Entry) { e.Source = whole.Source },
		"an index":     func(e *catalog.Entry) { e.Index = whole.Index },
		"no image":     func(e *catalog.Entry) { e.Images = []string{""} },
		"a long image": func(e *catalog.Entry) { e.Images = []string{strings.Repeat("x", 1025)} },
		"control":      func(e *catalog.Entry) { e.Images = []string{"a\nb"} },
		"nothing":      func(e *catalog.Entry) { e.Images = nil },
		"too many":     func(e *catalog.Entry) { e.Images = slices.Repeat(e.Images, layerdisk.MaxImages+1) },
	} {
		bad := making
		change(&bad)
		_, err := catalog.Encode(bad)
		require.ErrorIs(t, err, errdefs.ErrInvalidArgument, name)
	}
	damaged := bytes.Replace(data, []byte(`"images"`), []byte(`"indexDigest":"sha256:1","images"`), 1)
	_, err = catalog.Decode(damaged)
	require.ErrorIs(t, err, errdefs.ErrInvalidArgument)
}

// Every part of an entry that is cut off anywhere is refused.
func TestDecodeTruncated(t *testing.T) {
	data := sample(t)
	for n := range len(data) - 2 {
		_, err := catalog.Decode(data[:n])
		require.ErrorIs(t, err, errdefs.ErrDataLoss, n)
	}
}

func TestDecodeRefuses(t *testing.T) {
	for name, c := range map[string]struct {
		change func(map[string]any)
		class  error
		want   string
	}{
		"format": {func(m map[string]any) { m["format"] = 2 }, errdefs.ErrInvalidArgument, "format 2 is not known"},
		"digest": {func(m map[string]any) { m["indexDigest"] = "sha256:1" }, errdefs.ErrDataLoss, "its index has digest"},
		"source": {func(m map[string]any) { m["source"] = map[string]any{"driver": "x"} }, errdefs.ErrInvalidArgument, "either a volume"},
		"ID":     {func(m map[string]any) { m["id"] = "a/b" }, errdefs.ErrInvalidArgument, "ID"},
	} {
		t.Run(name, func(t *testing.T) {
			var m map[string]any
			require.NoError(t, json.Unmarshal(sample(t), &m))
			c.change(m)
			data, err := json.Marshal(m)
			require.NoError(t, err)
			_, err = catalog.Decode(data)
			require.ErrorIs(t, err, c.class)
			require.ErrorContains(t, err, c.want)
		})
	}
	_, err := catalog.Decode(bytes.Repeat([]byte{' '}, catalog.MaxEncodedBytes+1))
	require.ErrorIs(t, err, errdefs.ErrInvalidArgument)
}

// FuzzDecode also tries what it gets with the digest set right, or nothing changed in an index would ever be looked at.
func FuzzDecode(f *testing.F) {
	f.Add(sample(f))
	f.Add([]byte(`{"format":1}`))
	f.Add([]byte(`{"format":1,"name":"a","id":"a","state":"Creating","created":"2026-01-01T00:00:00Z","images":["docker.io/library/nginx:1"],"index":""}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		roundTrip(t, data)
		roundTrip(t, withRightDigest(data))
	})
}

// roundTrip wants what can be decoded to survive.
func roundTrip(t *testing.T, data []byte) {
	e, err := catalog.Decode(data)
	if err != nil {
		return
	}
	again, err := catalog.Encode(e)
	require.NoError(t, err)
	back, err := catalog.Decode(again)
	require.NoError(t, err)
	require.True(t, back.Created.Equal(e.Created))
	require.True(t, back.Expires.Equal(e.Expires))
	back.Created, back.Expires = e.Created, e.Expires
	require.Equal(t, e, back)
}

// withRightDigest is data itself if it has no index.
func withRightDigest(data []byte) []byte {
	var fields map[string]json.RawMessage
	var index []byte
	if json.Unmarshal(data, &fields) != nil || json.Unmarshal(fields["index"], &index) != nil {
		return data
	}
	fields["indexDigest"] = []byte(`"` + digest.FromBytes(index).String() + `"`)
	repaired, err := json.Marshal(fields)
	if err != nil {
		return data
	}
	return repaired
}
