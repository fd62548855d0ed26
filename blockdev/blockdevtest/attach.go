package blockdevtest

import (
	"context"
	"fmt"
	"sync"
	"time"

	"github.com/containerd/errdefs"
	"github.com/stretchr/testify/require"

	"berth.dev/berth/blockdev"
)

const hello = "what was written is what is read"

func attachAndDetach(r *run) {
	id := r.volume("suite-a")
	dev := r.attach(id, false)
	require.False(r, dev.ReadOnly)
	require.Equal(r, dev, r.attach(id, false), "attaching again changes nothing")
	attached, err := r.driver.Attached(r.ctx)
	require.NoError(r, err)
	require.Equal(r, map[string]blockdev.Device{id: dev}, attached)
	require.Equal(r, string(make([]byte, 4096)), r.readDevice(dev, 4096, r.SizeBytes-4096), "a new volume is blank up to its end")
	c, err := r.Open(dev, true)
	require.NoError(r, err)
	_, err = c.WriteAt([]byte(hello), 8192)
	require.NoError(r, err)
	require.NoError(r, c.Close())
	require.Equal(r, hello, r.readDevice(dev, len(hello), 8192))
	r.detach(id)
	r.detach(id)
	attached, err = r.driver.Attached(r.ctx)
	require.NoError(r, err)
	require.Empty(r, attached)
	require.Equal(r, hello, r.read(id, len(hello), 8192), "what was written stays")
	r.deleteVolume(id)
}

func attachReadOnly(r *run) {
	id := r.volume("suite-a")
	r.write(id, hello, 0)
	dev := r.attach(id, true)
	if !r.driver.Properties().ReadOnlyAttach {
		r.detach(id)
		r.deleteVolume(id)
		r.Skip("the driver attaches for writing only")
	}
	require.True(r, dev.ReadOnly)
	c, err := r.Open(dev, true)
	if err == nil {
		_, err = c.WriteAt([]byte("overwritten"), 0)
		if closeErr := c.Close(); err == nil {
			err = closeErr
		}
	}
	require.Error(r, err, "a device that is attached read-only took a write")
	require.Equal(r, hello, r.readDevice(dev, len(hello), 0))
	r.detach(id)
	require.Equal(r, hello, r.read(id, len(hello), 0))
	r.deleteVolume(id)
}

func attachConcurrently(r *run) {
	ids := []string{r.volume("suite-a"), r.volume("suite-b")}
	devices := make([][]blockdev.Device, len(ids))
	var group sync.WaitGroup
	for i, id := range ids {
		devices[i] = make([]blockdev.Device, 8)
		for j := range devices[i] {
			group.Go(func() {
				dev, err := r.driver.Attach(r.ctx, id, blockdev.AttachOptions{ReadOnly: true})
				if err != nil {
					r.Errorf("attach %s: %v", id, err)
				}
				devices[i][j] = dev
			})
		}
	}
	group.Wait()
	for i := range ids {
		for _, dev := range devices[i] {
			require.Equal(r, devices[i][0], dev, "one volume has one device")
		}
	}
	require.NotEqual(r, devices[0][0].Path, devices[1][0].Path)
	for _, id := range ids {
		for range 4 {
			group.Go(func() {
				if err := r.driver.Detach(r.ctx, id); err != nil {
					r.Errorf("detach %s: %v", id, err)
				}
			})
		}
	}
	group.Wait()
	for _, id := range ids {
		r.deleteVolume(id)
	}
}

func attachTheOtherWay(r *run) {
	if !r.driver.Properties().ReadOnlyAttach {
		r.Skip("the driver attaches one way only")
	}
	id := r.volume("suite-a")
	for _, readonly := range []bool{true, false} {
		dev := r.attach(id, readonly)
		_, err := r.driver.Attach(r.ctx, id, blockdev.AttachOptions{ReadOnly: !readonly})
		require.True(r, errdefs.IsAlreadyExists(err), "%v", err)
		require.Equal(r, dev, r.attach(id, readonly), "the refusal changed the attachment")
		r.detach(id)
	}
	r.deleteVolume(id)
}

func attachWhatIsNot(r *run) {
	for _, id := range []string{"suite-none", "", "no such/../volume"} {
		_, err := r.driver.Attach(r.ctx, id, blockdev.AttachOptions{ReadOnly: true})
		require.True(r, errdefs.IsNotFound(err) || errdefs.IsInvalidArgument(err), "attach %q: %v", id, err)
	}
	require.NoError(r, r.driver.Detach(r.ctx, "suite-none"), "detaching what is not attached is no error")
	if r.provisioner != nil {
		id := r.volume("suite-a")
		r.deleteVolume(id)
		_, err := r.driver.Attach(r.ctx, id, blockdev.AttachOptions{ReadOnly: true})
		require.True(r, errdefs.IsNotFound(err), "%v", err)
	}
}

func attachLimit(r *run) {
	limit := r.driver.Properties().MaxAttachments
	if limit == 0 {
		r.Skip("the driver has no limit")
	}
	ids := make([]string, 0, limit+1)
	for i := range limit + 1 {
		ids = append(ids, r.volume(fmt.Sprintf("suite-%d", i)))
	}
	last := ids[limit]
	for _, id := range ids[:limit] {
		r.attach(id, true)
	}
	_, err := r.driver.Attach(r.ctx, last, blockdev.AttachOptions{ReadOnly: true})
	require.True(r, errdefs.IsResourceExhausted(err), "%v", err)
	r.attach(ids[0], true)
	r.detach(ids[0])
	r.attach(last, true)
	for _, id := range ids {
		r.detach(id)
		r.deleteVolume(id)
	}
}

// attachCancelled wants an answer soon after the context has ended, and an operation that can be repeated.
func attachCancelled(r *run) {
	id := r.volume("suite-a")
	ctx, cancel := context.WithCancel(r.ctx)
	cancel()
	start := time.Now()
	_, attachErr := r.driver.Attach(ctx, id, blockdev.AttachOptions{ReadOnly: true})
	require.Less(r, time.Since(start), r.Patience)
	require.ErrorIs(r, attachErr, context.Canceled)
	r.attach(id, true)
	require.ErrorIs(r, r.driver.Detach(ctx, id), context.Canceled)
	r.detach(id)
	if r.provisioner != nil {
		_, err := r.provisioner.CreateVolume(ctx, blockdev.CreateVolumeRequest{Name: "suite-b", SizeBytes: r.SizeBytes})
		require.ErrorIs(r, err, context.Canceled)
		r.deleteVolume(r.volume("suite-b"))
	}
	r.deleteVolume(id)
}

func detachInUse(r *run) {
	id := r.volume("suite-a")
	dev := r.attach(id, true)
	release := r.Use(r.T, dev)
	err := r.driver.Detach(r.ctx, id)
	require.True(r, errdefs.IsFailedPrecondition(err), "%v", err)
	require.Equal(r, dev, r.attach(id, true), "a refused detachment must not happen later")
	release()
	r.detach(id)
	r.deleteVolume(id)
}

func reopen(r *run) {
	if r.Reopen == nil {
		r.Skip("the driver cannot be opened again")
	}
	id := r.volume("suite-a")
	r.write(id, hello, 0)
	dev := r.attach(id, true)
	r.use(r.Reopen(r.T, r.driver))
	attached, err := r.driver.Attached(r.ctx)
	require.NoError(r, err)
	require.Equal(r, map[string]blockdev.Device{id: dev}, attached, "attachments outlive the process")
	require.Equal(r, dev, r.attach(id, true))
	require.Equal(r, hello, r.readDevice(dev, len(hello), 0))
	r.detach(id)
	r.deleteVolume(id)
}
