package imagesnapshot

import (
	"fmt"

	"github.com/containerd/errdefs"
)

// Limits are what an installation allows. Check refuses the zero value.
type Limits struct {
	// MaxImages of one image snapshot, from 10 (C-30) to 20 (Q10).
	MaxImages int
	// MinSizeGiB and MaxSizeGiB bound Size.GiB.
	MinSizeGiB, MaxSizeGiB int
	// DefaultSizeGiB is for a spec that names no size.
	DefaultSizeGiB int
	// MaxPerOwner is the quota of each owner. Those that are being deleted do not count; 0 is no quota.
	MaxPerOwner int
	// MaxAutomatic is how many of an owner's may be automatic ones, which make room for one another. 0 gives them no
	// quota of their own.
	MaxAutomatic int
	// DefaultTimeoutMinutes is for a spec that names no timeout (C-39).
	DefaultTimeoutMinutes int
}

// Bounds that no installation can move; docs/image-snapshots.md, section 1, has their sources.
const (
	LeastMaxImages = 10
	MostMaxImages  = 20

	MaxRetentionDays  = 10000
	MaxRegistries     = 10
	MinTimeoutMinutes = 30
	MaxTimeoutMinutes = 10080

	MaxNameBytes        = 128
	MaxClientTokenBytes = 64
	MaxLabels           = 20
	MaxCopies           = 10

	maxReferenceBytes   = 1024
	maxPlatforms        = 8
	maxDNSServers       = 3 // resolv.conf(5), MAXNS
	maxParameters       = 64
	maxParameterBytes   = 4096
	maxAnnotations      = 64
	maxAnnotationsBytes = 64 << 10
	maxLabelKeyBytes    = 128 // Alibaba's tags; Kubernetes' label values are shorter still
	maxLabelValueBytes  = 256
	maxOwnerBytes       = 256
	maxSecretBytes      = 253 + 1 + 63 // Kubernetes' namespace:secret or secret
)

// Check refuses limits that make no sense; the error's class is errdefs.ErrInvalidArgument.
func (l Limits) Check() error {
	refuse := func(format string, args ...any) error {
		return fmt.Errorf("limits: "+format+": %w", append(args, errdefs.ErrInvalidArgument)...)
	}
	switch {
	case l.MaxImages < LeastMaxImages || l.MaxImages > MostMaxImages:
		return refuse("images per image snapshot is %d, allowed are %d to %d", l.MaxImages, LeastMaxImages, MostMaxImages)
	case l.MinSizeGiB < 1 || l.MaxSizeGiB < l.MinSizeGiB:
		return refuse("the smallest size is %d GiB and the largest %d GiB, want 1 or more, and the largest not below the smallest", l.MinSizeGiB, l.MaxSizeGiB)
	case l.DefaultSizeGiB < l.MinSizeGiB || l.DefaultSizeGiB > l.MaxSizeGiB:
		return refuse("default size is %d GiB, allowed are %d to %d", l.DefaultSizeGiB, l.MinSizeGiB, l.MaxSizeGiB)
	case l.MaxPerOwner < 0:
		return refuse("quota is %d, want 0 for no quota or a positive number", l.MaxPerOwner)
	case l.MaxAutomatic < 0:
		return refuse("quota of automatic image snapshots is %d, want 0 for no quota or a positive number", l.MaxAutomatic)
	case l.DefaultTimeoutMinutes < MinTimeoutMinutes || l.DefaultTimeoutMinutes > MaxTimeoutMinutes:
		return refuse("default build timeout is %d minutes, allowed are %d to %d", l.DefaultTimeoutMinutes, MinTimeoutMinutes, MaxTimeoutMinutes)
	}
	return nil
}
