package matcher_test

import (
	_ "crypto/sha512" // makes the algorithm available
	"encoding/json"
	"testing"

	"github.com/opencontainers/go-digest"
	"github.com/stretchr/testify/require"

	. "berth.dev/berth/matcher"

	"berth.dev/berth/layerdisk"
)

// TestNames shows that the names of orders and policies, which annotations, flags and files use, are read back.
func TestNames(t *testing.T) {
	type both struct {
		Order    Order
		Conflict ConflictPolicy
	}
	for o := OrderSaved; o <= OrderDegree; o++ {
		for c := ConflictPinWins; c <= ConflictRejectBoth; c++ {
			text, err := json.Marshal(both{o, c})
			require.NoError(t, err)
			require.Contains(t, string(text), o.String())
			require.Contains(t, string(text), c.String())
			var back both
			require.NoError(t, json.Unmarshal(text, &back))
			require.Equal(t, both{o, c}, back)
		}
	}
	for _, bad := range []string{`{"Order":"best"}`, `{"Conflict":"400"}`, `{"Order":""}`} {
		var b both
		require.Error(t, json.Unmarshal([]byte(bad), &b))
		require.Zero(t, b)
	}
	for _, bad := range []both{{Order: -1}, {Order: 4}, {Conflict: -1}, {Conflict: 4}} {
		_, err := json.Marshal(bad)
		require.Error(t, err)
	}
	require.Equal(t, "Order(7) ConflictPolicy(7)", Order(7).String()+" "+ConflictPolicy(7).String())
	require.Equal(t, []string{"pull", "use", "reject"}, []string{OutcomePull.String(), OutcomeUse.String(), OutcomeReject.String()})
	require.Equal(t, []string{"any", "linux/amd64", "linux/arm/v7"},
		[]string{Platform{}.String(), amd64.String(), Platform{"linux", "arm", "v7"}.String()})
}

// TestOtherAlgorithm matches by digests that are not sha256.
func TestOtherAlgorithm(t *testing.T) {
	layer := Layer{LayerName: layerdisk.LayerName{DiffID: digest.SHA512.FromString("a")}, CompressedBytes: 5}
	x := fleet(t, Candidate{Name: "a", ID: "a", State: StateAvailable, Layers: []Layer{layer}},
		Candidate{Name: "b", ID: "b", State: StateAvailable, Layers: []Layer{{LayerName: layerdisk.LayerName{DiffID: digest.SHA512.FromString("b")}}}})
	d := match(t, x, auto(Image{Reference: "i:1", Layers: []Layer{layer}}))
	require.Equal(t, []string{"a"}, names(d))
	require.Equal(t, 1, d.Considered)
}

// TestPinOfTwins: of two image snapshots with one name and one time of creation, all nodes take the same.
func TestPinOfTwins(t *testing.T) {
	twin := func(id string) Candidate { return but(snap("web", 1, nginx), func(c *Candidate) { c.ID = id }) }
	r := ruled(auto(nginx), func(r *Rules) { r.AutoMatch, r.Pin.Name = false, "web" })
	for _, x := range []*Index{fleet(t, twin("1"), twin("2")), fleet(t, twin("2"), twin("1"))} {
		require.Equal(t, "1", match(t, x, r).Chosen[0].ID)
		require.Equal(t, "1", match(t, x, auto(nginx)).Chosen[0].ID)
		require.True(t, x.Remove("1"))
		require.Equal(t, "2", match(t, x, r).Chosen[0].ID)
	}
}
