package imagesnapshotservice

import (
	"context"
	"errors"
	"strings"

	"github.com/containerd/errdefs"
	"github.com/containerd/errdefs/pkg/errgrpc"
	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"berth.dev/berth/imagesnapshot"
	"berth.dev/berth/imagesnapshot/lifecycle"
	"berth.dev/berth/imagesnapshot/store"
	"berth.dev/berth/matcher/dialect"
	imagesnapshotv1 "berth.dev/berth/proto/berth/imagesnapshot/v1"
)

// Register serves the use cases on a gRPC server.
func Register(registrar grpc.ServiceRegistrar, s *Service) {
	imagesnapshotv1.RegisterImageSnapshotServiceServer(registrar, &server{service: s})
}

// server translates between messages and use cases.
type server struct {
	imagesnapshotv1.UnimplementedImageSnapshotServiceServer
	service *Service
}

var _ imagesnapshotv1.ImageSnapshotServiceServer = (*server)(nil)

// CreateImageSnapshot implements the service.
func (s *server) CreateImageSnapshot(ctx context.Context, req *imagesnapshotv1.CreateImageSnapshotRequest) (*imagesnapshotv1.CreateImageSnapshotResponse, error) {
	r, err := s.service.engine.Create(ctx, lifecycle.CreateRequest{
		Name: req.GetName(), Owner: req.GetOwner(), ClientToken: req.GetClientToken(),
		Labels: req.GetLabels(), Annotations: req.GetAnnotations(), Spec: specOf(req.GetSpec()), DryRun: req.GetDryRun(),
	})
	if err != nil {
		return nil, statusOf(err)
	}
	return &imagesnapshotv1.CreateImageSnapshotResponse{ImageSnapshot: imageSnapshotMessage(r.Object, true), Existing: r.Existing, Warnings: r.Warnings}, nil
}

// EnsureAutomaticImageSnapshot implements the service.
func (s *server) EnsureAutomaticImageSnapshot(ctx context.Context, req *imagesnapshotv1.EnsureAutomaticImageSnapshotRequest) (*imagesnapshotv1.EnsureAutomaticImageSnapshotResponse, error) {
	r, err := s.service.engine.EnsureAutomatic(ctx, lifecycle.AutomaticRequest{
		Owner: req.GetOwner(), Images: req.GetImages(), Platforms: req.GetPlatforms(), Registries: registriesOf(req.GetRegistries()),
		Labels: req.GetLabels(), Annotations: req.GetAnnotations(), DryRun: req.GetDryRun(),
	})
	if err != nil {
		return nil, statusOfFields(err, "spec.")
	}
	return &imagesnapshotv1.EnsureAutomaticImageSnapshotResponse{ImageSnapshot: imageSnapshotMessage(r.Object, true), Existing: r.Existing, Warnings: r.Warnings}, nil
}

// GetImageSnapshot implements the service.
func (s *server) GetImageSnapshot(ctx context.Context, req *imagesnapshotv1.GetImageSnapshotRequest) (*imagesnapshotv1.GetImageSnapshotResponse, error) {
	o, err := s.service.Get(ctx, req.GetNameOrId())
	if err != nil {
		return nil, statusOf(err)
	}
	return &imagesnapshotv1.GetImageSnapshotResponse{ImageSnapshot: imageSnapshotMessage(o, true)}, nil
}

// ListImageSnapshots implements the service.
func (s *server) ListImageSnapshots(ctx context.Context, req *imagesnapshotv1.ListImageSnapshotsRequest) (*imagesnapshotv1.ListImageSnapshotsResponse, error) {
	list, next, err := s.service.List(ctx, filterOf(req.GetFilter()), int(req.GetPageSize()), req.GetPageToken())
	if err != nil {
		return nil, statusOf(err)
	}
	resp := &imagesnapshotv1.ListImageSnapshotsResponse{NextPageToken: next}
	for _, o := range list {
		resp.ImageSnapshots = append(resp.ImageSnapshots, imageSnapshotMessage(o, false))
	}
	return resp, nil
}

// UpdateImageSnapshot implements the service.
func (s *server) UpdateImageSnapshot(ctx context.Context, req *imagesnapshotv1.UpdateImageSnapshotRequest) (*imagesnapshotv1.UpdateImageSnapshotResponse, error) {
	if _, err := s.service.Get(ctx, req.GetNameOrId()); err != nil {
		return nil, statusOf(err)
	}
	r, err := s.service.engine.Update(ctx, lifecycle.UpdateRequest{
		NameOrID: req.GetNameOrId(), Spec: specOf(req.GetSpec()), Labels: mapOf(req.GetLabels()), Annotations: mapOf(req.GetAnnotations()),
		Rebuild: req.GetRebuild(), Preconditions: preconditionsOf(req.GetPreconditions()), DryRun: req.GetDryRun(),
	})
	if err != nil {
		return nil, statusOf(err)
	}
	return &imagesnapshotv1.UpdateImageSnapshotResponse{ImageSnapshot: imageSnapshotMessage(r.Object, true), Warnings: r.Warnings}, nil
}

// DeleteImageSnapshot implements the service.
func (s *server) DeleteImageSnapshot(ctx context.Context, req *imagesnapshotv1.DeleteImageSnapshotRequest) (*imagesnapshotv1.DeleteImageSnapshotResponse, error) {
	if _, err := s.service.Get(ctx, req.GetNameOrId()); err != nil {
		return nil, statusOf(err)
	}
	o, err := s.service.engine.Delete(ctx, lifecycle.DeleteRequest{
		NameOrID: req.GetNameOrId(), Preconditions: preconditionsOf(req.GetPreconditions()), DryRun: req.GetDryRun(),
	})
	if err != nil {
		return nil, statusOf(err)
	}
	return &imagesnapshotv1.DeleteImageSnapshotResponse{ImageSnapshot: imageSnapshotMessage(o, true)}, nil
}

// ListImageSnapshotEvents implements the service.
func (s *server) ListImageSnapshotEvents(ctx context.Context, req *imagesnapshotv1.ListImageSnapshotEventsRequest) (*imagesnapshotv1.ListImageSnapshotEventsResponse, error) {
	events, err := s.service.Events(ctx, filterOf(req.GetFilter()))
	if err != nil {
		return nil, statusOf(err)
	}
	resp := &imagesnapshotv1.ListImageSnapshotEventsResponse{}
	for _, e := range events {
		resp.Events = append(resp.Events, eventMessage(e))
	}
	return resp, nil
}

// WatchImageSnapshots implements the service.
func (s *server) WatchImageSnapshots(req *imagesnapshotv1.WatchImageSnapshotsRequest, stream grpc.ServerStreamingServer[imagesnapshotv1.WatchImageSnapshotsResponse]) error {
	return statusOf(s.service.Watch(stream.Context(), filterOf(req.GetFilter()), func(c store.Change) error {
		return stream.Send(&imagesnapshotv1.WatchImageSnapshotsResponse{ImageSnapshot: imageSnapshotMessage(c.Object, true), Deleted: c.Deleted})
	}))
}

// WatchImageSnapshotEvents implements the service.
func (s *server) WatchImageSnapshotEvents(req *imagesnapshotv1.WatchImageSnapshotEventsRequest, stream grpc.ServerStreamingServer[imagesnapshotv1.WatchImageSnapshotEventsResponse]) error {
	return statusOf(s.service.WatchEvents(stream.Context(), filterOf(req.GetFilter()), func(e Event) error {
		return stream.Send(&imagesnapshotv1.WatchImageSnapshotEventsResponse{Event: eventMessage(e)})
	}))
}

// MatchImages implements the service.
func (s *server) MatchImages(ctx context.Context, req *imagesnapshotv1.MatchImagesRequest) (*imagesnapshotv1.MatchImagesResponse, error) {
	r, err := matchRequestOf(req)
	if err != nil {
		return nil, statusOf(err)
	}
	a, err := s.service.Match(ctx, r)
	if err != nil {
		return nil, statusOf(err)
	}
	return matchMessage(a), nil
}

// statusOf is the gRPC status of an error: its class as a code, and each field that is wrong among the details.
// ErrConflict becomes ABORTED, so that clients can distinguish a precondition that no longer holds (read again) from a
// phase that does not allow something (wait).
func statusOf(err error) error { return statusOfFields(err, "") }

// statusOfFields is statusOf for a request that has the fields of a spec without the prefix.
func statusOfFields(err error, prefix string) error {
	if err == nil {
		return nil
	}
	st, ok := status.FromError(errgrpc.ToGRPC(err))
	if !ok {
		return errgrpc.ToGRPC(err)
	}
	if errdefs.IsConflict(err) {
		st = status.New(codes.Aborted, st.Message())
	}
	violations := violationsIn(err)
	if len(violations) == 0 {
		return st.Err()
	}
	// A line for each field would break up the one line that a message is.
	st = status.New(st.Code(), renamed(strings.ReplaceAll(st.Message(), "\n", "; "), prefix, violations))
	detailed, detailErr := st.WithDetails(&errdetails.BadRequest{FieldViolations: violations})
	if detailErr != nil {
		return st.Err()
	}
	return detailed.Err()
}

// violationsIn finds the illegal values that an error joins.
func violationsIn(err error) []*errdetails.BadRequest_FieldViolation {
	var violations []*errdetails.BadRequest_FieldViolation
	//nolint:errorlint // errors.As finds one, wanted are all
	switch e := err.(type) {
	case *imagesnapshot.FieldError:
		return []*errdetails.BadRequest_FieldViolation{{Field: e.Field, Description: e.Detail}}
	case *dialect.Error:
		return []*errdetails.BadRequest_FieldViolation{{Field: "annotations[" + e.Key + "]", Description: e.Problem}}
	case interface{ Unwrap() []error }:
		for _, inner := range e.Unwrap() {
			violations = append(violations, violationsIn(inner)...)
		}
		return violations
	}
	if inner := errors.Unwrap(err); inner != nil {
		return violationsIn(inner)
	}
	return nil
}
