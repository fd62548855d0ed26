package loopdev

import "context"

// locked runs do while nothing else is done with the key's volume or snapshot. Copying a disk can take long, so waiting for
// it obeys ctx.
func (d *Driver) locked(ctx context.Context, key string, do func() error) error {
	for {
		d.mu.Lock()
		other := d.busy[key]
		if other == nil {
			d.busy[key] = make(chan struct{})
			d.mu.Unlock()
			break
		}
		d.mu.Unlock()
		select {
		case <-other:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	defer func() {
		d.mu.Lock()
		defer d.mu.Unlock()
		close(d.busy[key])
		delete(d.busy, key)
	}()
	if err := ctx.Err(); err != nil {
		return err
	}
	return do()
}

func volumeKey(id string) string { return "volume " + id }

func snapshotKey(id string) string { return "snapshot " + id }
