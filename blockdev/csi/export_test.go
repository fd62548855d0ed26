package csi

import "context"

// Connect asks the CSI driver what it can do, as every operation does first.
func (d *Driver) Connect(ctx context.Context) error {
	_, err := d.c.connect(ctx)
	return err
}
