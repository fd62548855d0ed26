package blockdev

import (
	"errors"
	"fmt"

	"github.com/containerd/errdefs"
)

// The situations a driver can be in, and the class of each: this is the only such table. A driver wraps one of these
// with what it was doing and to which object, callers ask with errors.Is for the situation or with errdefs.Is… for the
// class.
//
// Only Unavailable is worth trying again unchanged, see Retryable. FailedPrecondition needs somebody to do something
// first, ResourceExhausted needs something else to be given up.
var (
	// ErrNotFound: the volume, volume snapshot or device does not exist.
	ErrNotFound = fmt.Errorf("does not exist: %w", errdefs.ErrNotFound)
	// ErrExists: the name is taken by an object with other parameters, or the volume is attached with other options.
	ErrExists = fmt.Errorf("already exists with other parameters: %w", errdefs.ErrAlreadyExists)
	// ErrInUse: a device is mounted or held open, or a volume is attached.
	ErrInUse = fmt.Errorf("in use: %w", errdefs.ErrFailedPrecondition)
	// ErrAttachLimit: the node has as many volumes attached as it can have.
	ErrAttachLimit = fmt.Errorf("attach limit of this node reached, detach another volume first: %w", errdefs.ErrResourceExhausted)
	// ErrNoSpace: the storage is full or the quota used up.
	ErrNoSpace = fmt.Errorf("no space left in the storage: %w", errdefs.ErrResourceExhausted)
	// ErrThrottled: the storage asked to slow down, or did not answer in time. The operation may have been done.
	ErrThrottled = fmt.Errorf("storage is busy: %w", errdefs.ErrUnavailable)
	// ErrNotReady: the object exists but is still being made.
	ErrNotReady = fmt.Errorf("not ready yet: %w", errdefs.ErrUnavailable)
	// ErrUnsupported: the driver or the object cannot do that.
	ErrUnsupported = fmt.Errorf("not supported by the driver: %w", errdefs.ErrNotImplemented)
	// ErrInvalid: a name, size or ID that can never be right.
	ErrInvalid = fmt.Errorf("invalid: %w", errdefs.ErrInvalidArgument)
	// ErrDenied: the storage does not let us do that with the credentials we have.
	ErrDenied = fmt.Errorf("denied by the storage, check the credentials: %w", errdefs.ErrPermissionDenied)
	// ErrFailed: the storage tried and could not, and says nothing that anybody could act upon.
	ErrFailed = fmt.Errorf("the storage could not do it: %w", errdefs.ErrInternal)
	// ErrMayBeDone comes beside one of the others, of an operation that was tried more than once: an earlier attempt
	// was not answered and may have been done. It has no class.
	ErrMayBeDone = errors.New("an earlier attempt was not answered and may have been done")
)

// Retryable says that the same operation may succeed later with nobody doing anything about it. A nil error is not
// retryable.
func Retryable(err error) bool {
	return err != nil && errdefs.IsUnavailable(err)
}
