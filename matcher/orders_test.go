package matcher_test

import (
	"testing"

	"github.com/stretchr/testify/require"

	. "berth.dev/berth/matcher"
)

// TestOrders shows C-4, C-5, C-8, E-4, Q5 and Q6: the same fleet under every order.
func TestOrders(t *testing.T) {
	big := img("docker.io/library/big:1", "base:10:30", "big:500:900")
	small := img("docker.io/library/small:1", "base:10:30", "small:20:40")
	tiny := img("docker.io/library/tiny:1", "tiny:5:9")
	other := img("docker.io/library/other:1", "other:1:1")
	for _, tc := range []struct {
		name  string
		order Order
		fleet []Candidate
		want  string
	}{
		{"size: largest sum of matched images", OrderSize, []Candidate{snap("a", 1, small, tiny), snap("b", 2, big)}, "b"},
		{"size: size of the snapshot does not count", OrderSize, []Candidate{
			snap("a", 1, tiny, img("x:1", "x:100000")), snap("b", 2, small)}, "b"},
		{"size: equal bytes, the newer", OrderSize, []Candidate{snap("a", 2, big), snap("b", 1, big)}, "b"},
		{"quantity: most images", OrderQuantity, []Candidate{snap("a", 2, small, tiny), snap("b", 1, big)}, "a"},
		{"quantity: bytes do not count, the newer", OrderQuantity, []Candidate{snap("a", 2, big), snap("b", 1, tiny)}, "b"},
		{"degree: most images", OrderDegree, []Candidate{snap("a", 2, small, tiny), snap("b", 1, big)}, "a"},
		{"degree: equal degree, more bytes", OrderDegree, []Candidate{snap("a", 2, big), snap("b", 1, tiny)}, "a"},
		{"degree: equal bytes, the newer", OrderDegree, []Candidate{snap("a", 2, big), snap("b", 1, big)}, "b"},
		{"saved: most bytes", OrderSaved, []Candidate{snap("a", 1, other), snap("b", 2, big)}, "b"},
		{"all equal: the first name", OrderQuantity, []Candidate{snap("b", 1, big), snap("a", 1, big)}, "a"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			r := ruled(auto(big, small, tiny, other), func(r *Rules) { r.Order, r.MaxAttach = tc.order, 1 })
			d := match(t, fleet(t, tc.fleet...), r)
			require.Equal(t, OutcomeUse, d.Outcome)
			require.Equal(t, []string{tc.want}, names(d))
		})
	}
}
