package lifecycle_test

import (
	"testing"

	"github.com/stretchr/testify/require"

	"berth.dev/berth/imagesnapshot"
	"berth.dev/berth/imagesnapshot/lifecycle"
)

// TestAutomatic is E-5: one per image set, however many ask.
func TestAutomatic(t *testing.T) {
	newWorld(t, func(w *world) {
		ids := make(chan string, 20)
		for i := range cap(ids) {
			images := []string{"a:1", refC}
			if i%2 == 1 {
				images = []string{"docker.io/library/c:1", "docker.io/library/a:1"}
			}
			go func() {
				r, err := w.engine.EnsureAutomatic(w.Context(), lifecycle.AutomaticRequest{Images: images})
				if err != nil {
					ids <- err.Error()
					return
				}
				ids <- r.Object.ID
			}()
		}
		first := <-ids
		for range cap(ids) - 1 {
			require.Equal(t, first, <-ids)
		}
		s, err := w.engine.Find(t.Context(), first)
		require.NoError(t, err)
		require.Equal(t, imagesnapshot.OriginAutomatic, s.Origin)
		s = w.await(s.Name, imagesnapshot.PhaseAvailable)
		require.Len(t, w.builder.builds, 1)
		require.EqualValues(t, 3*5*5<<30, s.Status.Snapshots[0].SizeBytes, "Q15: three times the five compressed layers")

		other, err := w.engine.EnsureAutomatic(t.Context(), lifecycle.AutomaticRequest{Owner: "other", Images: []string{refA, refC}})
		require.NoError(t, err)
		require.NotEqual(t, s.Name, other.Object.Name, "owners share nothing")
	})
}
