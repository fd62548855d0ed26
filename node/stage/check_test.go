package stage

import (
	"errors"
	"fmt"
	"os"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/containerd/errdefs"
	"github.com/stretchr/testify/require"

	"berth.dev/berth/layerdisk"
)

// failures are the disks that an Observer was told about.
type failures struct {
	mu  sync.Mutex
	all []string
}

func (*failures) StepDone(Step, time.Duration, error) {}

func (f *failures) DiskFailed(d DiskStatus, err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.all = append(f.all, fmt.Sprintf("%s of %s %d %v", d.Name, d.ImageSnapshot.Name, d.Holders, err))
}

func (f *failures) take() []string {
	f.mu.Lock()
	defer f.mu.Unlock()
	all := f.all
	f.all = nil
	return all
}

// TestServedDir: a layer directory is handed out of a disk that answers only, and a disk that does not is taken out of
// service by who asks first.
func TestServedDir(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCloud(t, nil)
		defer c.close()
		observed := &failures{}
		c.observer = observed
		v := c.sys.volume(t, "one", "a")
		_, err := c.Stage(t.Context(), Spec{Name: "one", Driver: "cloud", VolumeID: v.ID})
		require.NoError(t, err)
		held, err := c.Layers.Acquire(t.Context(), "h", chain("a"))
		require.NoError(t, err)
		dir, err := c.Layers.ServedDir(t.Context(), held.DiskUUID, held.LayerNumber)
		require.NoError(t, err)
		require.Equal(t, held.Dir, dir)

		time.Sleep(2 * checkFresh)
		c.sys.setSick(errors.New("input/output error"))
		dir, err = c.Layers.LayerDir(held.DiskUUID, held.LayerNumber)
		require.NoError(t, err, "memory knows nothing of it")
		require.Equal(t, held.Dir, dir)
		_, err = c.Layers.ServedDir(t.Context(), held.DiskUUID, held.LayerNumber)
		require.True(t, errdefs.IsUnavailable(err), err)
		require.ErrorContains(t, err, "input/output error")
		require.Equal(t, []string{"one of  1 input/output error"}, observed.take())
		_, err = c.Layers.ServedDir(t.Context(), "another", 0)
		require.True(t, errdefs.IsUnavailable(err), err)
		require.Empty(t, observed.take())
	})
}

func TestCheck(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCloud(t, nil)
		defer c.close()
		observed := &failures{}
		c.observer = observed
		v := c.sys.volume(t, "one", "a")
		_, err := c.Stage(t.Context(), Spec{Name: "one", Driver: "cloud", VolumeID: v.ID, ImageSnapshot: ImageSnapshot{Name: "nightly", ID: "1"}})
		require.NoError(t, err)
		_, err = c.Layers.Acquire(t.Context(), "h", chain("a"))
		require.NoError(t, err)
		require.NoError(t, c.Check(t.Context(), "one"))
		require.True(t, errdefs.IsNotFound(c.Check(t.Context(), "two")))

		// An answer of a moment ago does not count, as it would for Acquire.
		sick := errors.New("input/output error")
		c.sys.setSick(sick)
		require.ErrorIs(t, c.Check(t.Context(), "one"), sick)
		require.Equal(t, []string{"one of nightly 1 input/output error"}, observed.take())
		require.Equal(t, StateFailed, c.Disks()[0].State)
		require.NoError(t, c.Check(t.Context(), "one"), "it does not serve")
		require.Empty(t, observed.take(), "it is said once")
		c.sys.setSick(nil)
		time.Sleep(2 * firstRetry)
		synctest.Wait()
		require.True(t, c.Disks()[0].Serving)
		require.NoError(t, c.Check(t.Context(), "one"))

		// Acquire tells too.
		time.Sleep(2 * checkFresh)
		c.sys.setSick(sick)
		_, err = c.Layers.Acquire(t.Context(), "i", chain("a"))
		require.Error(t, err)
		require.Equal(t, []string{"one of nightly 1 input/output error"}, observed.take())
		c.sys.setSick(nil)
	})
}

// TestRecheck: an answer to an earlier question, given later, does not count.
func TestRecheck(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var h health
		old := make(chan error)
		go func() {
			_ = h.check(t.Context(), func() error { return <-old }, func() error { return nil })
		}()
		synctest.Wait()
		gone := errors.New("gone")
		answer := make(chan error, 1)
		go func() { answer <- h.recheck(t.Context(), func() error { return gone }) }()
		synctest.Wait()
		old <- nil
		require.ErrorIs(t, <-answer, gone)
	})
}

func TestCheckRealDisk(t *testing.T) {
	n := newNode(t)
	n.start()
	path, _ := n.disk("one", layerdisk.FileSystemEROFS, "a")
	n.stage("one", path)
	require.NoError(t, n.Check(t.Context(), "one"))
	require.NoError(t, os.Truncate(path, 0))
	require.Error(t, n.Check(t.Context(), "one"))
	require.False(t, n.status("one").Serving)
	require.Equal(t, MissFailed, n.miss("h", chain("a")).Reason)
	_, err := n.Unstage(t.Context(), "one", UnstageOptions{})
	require.NoError(t, err)
	require.Empty(t, n.left())
}
