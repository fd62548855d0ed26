package control

import "time"

// Hydration is the reading ahead of what one start of an image reads from a disk.
type Hydration struct {
	// Image by its reference, Disk by its name on this node.
	Image, Disk, DiskUUID string
	// Listed says that there is an access list of the image.
	Listed bool
	// State is "waiting", "running", or how it ended; Reason says why it is not done.
	State, Reason string
	// TotalBytes are to be read, Bytes were, in so many Reads. Skipped are parts of the list that are not on the disk.
	TotalBytes, Bytes, Reads, Skipped int64
	Wanted                            time.Time
	Took                              time.Duration
	BytesPerSecond                    int64
}

// Hydrations tells what is read ahead on this node.
type Hydrations interface {
	// Hydrations under way, and the last ones that were: the youngest first.
	Hydrations() []Hydration
}

// WithHydrations lets the service tell of what is read ahead. It is for before serving.
func (s *Service) WithHydrations(h Hydrations) *Service {
	s.hydrations = h
	return s
}
