package stage

import "time"

// Step is one thing that is done with a disk.
type Step string

// Steps. All but StepProve, StepPace and StepCheck, which change nothing, are journalled before they are done.
const (
	StepCreate  Step = "create"
	StepAttach  Step = "attach"
	StepProve   Step = "prove"
	StepPace    Step = "pace"
	StepMount   Step = "mount"
	StepCheck   Step = "check"
	StepUnmount Step = "unmount"
	StepDetach  Step = "detach"
	StepDelete  Step = "delete"
)

// Observer learns how long each step took and how it ended, retries included, and which disks fail while they serve.
// Many goroutines call it at once. Its methods must not block.
type Observer interface {
	StepDone(step Step, took time.Duration, err error)
	// DiskFailed says that a disk that served, as it was then, was taken out of service, because of err. Whatever runs
	// from the layers that its holders hold gets I/O errors.
	DiskFailed(disk DiskStatus, err error)
}

// noObserver is used when none is given.
type noObserver struct{}

func (noObserver) StepDone(Step, time.Duration, error) {}

func (noObserver) DiskFailed(DiskStatus, error) {}
