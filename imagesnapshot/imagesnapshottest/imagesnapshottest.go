// Package imagesnapshottest has what tests of image snapshots share.
package imagesnapshottest

import "berth.dev/berth/imagesnapshot"

// Limits are those of the configuration that berthd ships; cmd/berthd.TestShippedLimits compares them.
func Limits() imagesnapshot.Limits {
	return imagesnapshot.Limits{
		MaxImages: 10, MinSizeGiB: 20, MaxSizeGiB: 400, DefaultSizeGiB: 20, MaxPerOwner: 50, MaxAutomatic: 20,
		DefaultTimeoutMinutes: 1440,
	}
}
