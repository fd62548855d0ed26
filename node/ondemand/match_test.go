package ondemand_test

import (
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"berth.dev/berth/imagesnapshot/catalog"
	"berth.dev/berth/layerdisk"
	"berth.dev/berth/layerdisk/layerdisktest"
	"berth.dev/berth/matcher"
	"berth.dev/berth/node/ondemand"
	"berth.dev/berth/node/stage"
)

// asked is what somebody asks who knows the whole image.
func asked(id string, layers ...string) matcher.Request {
	img := matcher.Image{Reference: ref(id), Platform: matcher.Platform{OS: "linux", Architecture: "amd64"}}
	for _, l := range layers {
		img.Layers = append(img.Layers, matcher.Layer{LayerName: layerdisk.LayerName{DiffID: layerdisktest.DiffID(l), Blob: layerdisktest.BlobDigest(l)}})
	}
	return matcher.Request{Images: []matcher.Image{img}, Rules: matcher.Rules{AutoMatch: true}, Now: time.Now()}
}

// What is foretold is what a pull then does, and nothing is attached for it.
func TestMatchForetells(t *testing.T) {
	for name, c := range map[string]struct {
		layers []string
		want   string
	}{
		"a whole image": {[]string{"base", "app"}, "name-of-app"},
		"a stack":       {[]string{"base", "b1", "b2"}, "name-of-b"},
		"nothing":       {[]string{"other"}, ""},
	} {
		t.Run(name, func(t *testing.T) {
			inBubble(t, nil, func(r *rig) {
				r.add("app", "base", "app")
				r.add("b", "base", "b1", "b2")
				d, err := r.Match(asked("unknown", c.layers...))
				require.NoError(r, err)
				require.Empty(r, d.Warnings)
				staged, _, _ := r.stage.names()
				require.Empty(r, staged)
				r.pull(want("unknown", c.layers...))
				rec, ok := r.Last(ref("unknown"))
				require.True(r, ok)
				require.Equal(r, rec.Decision.Outcome, d.Outcome)
				require.Equal(r, rec.Decision.Chosen, d.Chosen)
				if c.want != "" {
					require.Equal(r, c.want, d.Chosen[0].Name)
				}
			})
		})
	}
}

// C-3: what cannot be used is explained, one that has no disk yet too.
func TestMatchExplainsWhatCannotBeUsed(t *testing.T) {
	inBubble(t, nil, func(r *rig) {
		verdict := func() (matcher.Verdict, string) {
			d, err := r.Match(asked("app", "base", "app"))
			require.NoError(r, err)
			require.Len(r, d.Candidates, 1)
			return d.Candidates[0].Verdict, d.Candidates[0].Why
		}
		making := catalog.Entry{Name: "name-of-app", ID: "app", State: "Creating", Images: []string{ref("app")}}
		r.publish(making)
		v, why := verdict()
		require.Equal(r, matcher.VerdictNotReady, v)
		require.Contains(r, why, "Creating")

		e := r.add("app", "base", "app")
		v, _ = verdict()
		require.Equal(r, matcher.VerdictChosen, v)
		for want, change := range map[matcher.Verdict]func(*catalog.Entry){
			matcher.VerdictExpired:     func(e *catalog.Entry) { e.Expires = time.Now() },
			matcher.VerdictNotReady:    func(e *catalog.Entry) { e.State = "Updating" },
			matcher.VerdictUnreachable: func(e *catalog.Entry) { e.Source.Driver = "cloud" },
		} {
			other := e
			change(&other)
			r.publish(other)
			v, _ := verdict()
			require.Equal(r, want, v)
		}

		r.publish(e)
		arm := asked("app", "base", "app")
		arm.Images[0].Platform.Architecture = "arm64"
		d, err := r.Match(arm)
		require.NoError(r, err)
		require.Equal(r, matcher.VerdictPlatform, d.Candidates[0].Verdict)

		r.pull(want("app", "base", "app"))
		making.State = "Deleting"
		r.publish(making)
		synctest.Wait()
		_, unstaged, _ := r.stage.names()
		require.Len(r, unstaged, 1, "the disk of one that has none any more is let go")
		v, _ = verdict()
		require.Equal(r, matcher.VerdictNotReady, v)
	})
}

// Layers on a disk that somebody attached and no catalog has are there already.
func TestMatchKnowsDisksOfNoCatalog(t *testing.T) {
	inBubble(t, nil, func(r *rig) {
		r.add("base", "base")
		by := layerdisktest.Index(layerdisk.FileSystemEROFS, layerdisktest.Image{Reference: ref("x"), Layers: []string{"base"}})
		r.stage.disks["by-hand"] = &stage.DiskStatus{Name: "by-hand", UUID: "another", State: stage.StateIdle, Serving: true}
		r.stage.serves["by-hand"] = layerdisk.NewLookup(by)
		d, err := r.Match(asked("base", "base"))
		require.NoError(r, err)
		require.Equal(r, matcher.OutcomePull, d.Outcome, d.Reason)
		r.pull(want("base", "base"))
		staged, _, _ := r.stage.names()
		require.Empty(r, staged)
	})
}

// A disk for which there is no room is foretold as such.
func TestMatchWarnsOfNoRoom(t *testing.T) {
	inBubble(t, func(c *ondemand.Config) { c.MaxDisks = 1 }, func(r *rig) {
		r.add("a", "a")
		r.add("b", "b")
		r.pull(want("a", "a"))
		time.Sleep(time.Minute)
		warnings := func() []string {
			d, err := r.Match(asked("b", "b"))
			require.NoError(r, err)
			require.Equal(r, "name-of-b", d.Chosen[0].Name)
			return d.Warnings
		}
		require.Empty(r, warnings(), "the idle one makes room")
		r.stage.change(r.stage.Disks()[0].Name, func(d *stage.DiskStatus) { d.State, d.Holders = stage.StateInUse, 1 })
		require.Len(r, warnings(), 1)
		require.Contains(r, warnings()[0], "name-of-b")
		r.pull(want("b", "b"))
		rec, _ := r.Last(ref("b"))
		require.Equal(r, ondemand.ResultNoRoom, rec.Disks[0].Result)
	})
}

func TestMatchRefusesNonsense(t *testing.T) {
	inBubble(t, nil, func(r *rig) {
		_, err := r.Match(matcher.Request{Rules: matcher.Rules{AutoMatch: true}})
		require.ErrorIs(r, err, matcher.ErrInvalidRequest)
	})
}
