package nodeservice_test

import (
	"errors"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	"github.com/stretchr/testify/require"

	"berth.dev/berth/control/nodeservice"
	"berth.dev/berth/layerdisk"
	"berth.dev/berth/matcher"
	"berth.dev/berth/node/ondemand"
	controlv1 "berth.dev/berth/proto/berth/control/v1"
	"berth.dev/berth/proto/enumword"
)

type lastChoices map[string]ondemand.Record

func (l lastChoices) Last(ref string, chainIDs ...digest.Digest) (ondemand.Record, bool) {
	for _, key := range append([]digest.Digest{digest.Digest(ref)}, chainIDs...) {
		if c, ok := l[key.String()]; ok {
			return c, true
		}
	}
	return ondemand.Record{}, false
}

func TestLastChoice(t *testing.T) {
	s, _, _ := newService(t)
	_, ok := s.LastChoice("a", nil)
	require.False(t, ok, "nobody chooses")
	chain := digest.FromString("x")
	c := ondemand.Record{Time: time.Unix(5, 0).UTC(), ChainID: chain, Waited: time.Second,
		Decision: matcher.Decision{Reason: "r", Candidates: []matcher.Explanation{{Name: "s", ID: "i", Verdict: matcher.VerdictLost, Why: "w"}}},
		Disks:    []ondemand.DiskResult{{Name: "s", ID: "i", Disk: "d", Result: ondemand.ResultFailed, Err: errors.New("e")}}}
	s, _, _ = newService(t, func(cfg *nodeservice.Config) { cfg.Choices = lastChoices{"a": c, "": c, chain.String(): c} })
	for _, tc := range []struct {
		ref    string
		layers []layerdisk.LayerName
		want   bool
	}{
		{"a", nil, true},
		{"x", []layerdisk.LayerName{{ChainID: chain}}, true},
		{"b", nil, false},
		{"", nil, false}, // no image, no choice
	} {
		got, ok := s.LastChoice(tc.ref, tc.layers)
		require.Equal(t, tc.want, ok, tc.ref)
		if ok {
			require.Equal(t, c, got)
		}
	}

	resp, err := serve(t, s).ExplainLayers(t.Context(), &controlv1.ExplainLayersRequest{ImageRef: "a"})
	require.NoError(t, err)
	m := resp.GetLastChoice()
	require.Equal(t, c.Time, m.GetTime().AsTime())
	require.Equal(t, []string{chain.String(), "r", "1s"}, []string{m.GetChainId(), m.GetReason(), m.GetWaited().AsDuration().String()})
	disk, candidate := m.GetDisks()[0], m.GetCandidates()[0]
	require.Equal(t, []string{"s", "d", "failed", "e"}, []string{disk.GetImageSnapshot(), disk.GetDisk(), enumword.Of(disk.GetResult()), disk.GetError()})
	require.Equal(t, []string{"s", "i", "lost", "w"}, []string{candidate.GetName(), candidate.GetId(), enumword.Of(candidate.GetVerdict()), candidate.GetWhy()})
}
