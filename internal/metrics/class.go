package metrics

import (
	"context"
	"errors"

	"github.com/containerd/errdefs"
)

// errorClass is a class of errors and its name as a label.
type errorClass struct {
	class error
	name  string
}

// errorClasses in the order in which they are asked for: an error may have several.
func errorClasses() []errorClass {
	return []errorClass{
		{context.Canceled, "canceled"},
		{context.DeadlineExceeded, "deadline"},
		{errdefs.ErrNotFound, "not-found"},
		{errdefs.ErrAlreadyExists, "already-exists"},
		{errdefs.ErrInvalidArgument, "invalid-argument"},
		{errdefs.ErrFailedPrecondition, "failed-precondition"},
		{errdefs.ErrResourceExhausted, "resource-exhausted"},
		{errdefs.ErrUnavailable, "unavailable"},
		{errdefs.ErrDataLoss, "data-loss"},
		{errdefs.ErrNotImplemented, "not-implemented"},
	}
}

const unknownClass = "unknown"

// ErrorClasses are the values of the label "class".
func ErrorClasses() []string {
	var names []string
	for _, c := range errorClasses() {
		names = append(names, c.name)
	}
	return append(names, unknownClass)
}

// ErrorClass is the one of ErrorClasses that an error has, empty for no error.
func ErrorClass(err error) string {
	if err == nil {
		return ""
	}
	for _, c := range errorClasses() {
		if errors.Is(err, c.class) {
			return c.name
		}
	}
	return unknownClass
}
