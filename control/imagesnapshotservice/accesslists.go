package imagesnapshotservice

import (
	"context"
	"fmt"
	"slices"

	"github.com/containerd/errdefs"
	"google.golang.org/protobuf/types/known/timestamppb"

	"berth.dev/berth/imagesnapshot"
	imagesnapshotv1 "berth.dev/berth/proto/berth/imagesnapshot/v1"
	"berth.dev/berth/readahead/accesslist"
)

// AccessLists keeps access lists of image snapshots by their IDs; a store.AccessLists does.
type AccessLists interface {
	PutAccessList(ctx context.Context, id string, list *accesslist.List) error
	AccessLists(ctx context.Context, id string) ([]*accesslist.List, error)
}

// WithAccessLists keeps access lists in lists. Without it there are no access lists, and clients cannot put any.
func (s *Service) WithAccessLists(lists AccessLists) *Service {
	s.lists = lists
	return s
}

// PutAccessList keeps a list with an image snapshot that has the list's image. Errors: errdefs.ErrNotFound,
// ErrInvalidArgument, and ErrFailedPrecondition for an image snapshot that has no content yet or is being deleted.
func (s *Service) PutAccessList(ctx context.Context, nameOrID string, list *accesslist.List) error {
	if s.lists == nil {
		return fmt.Errorf("access lists are not kept here: %w", errdefs.ErrNotImplemented)
	}
	o, err := s.Get(ctx, nameOrID)
	if err != nil {
		return err
	}
	if len(o.Status.Images) == 0 || o.Status.Phase == imagesnapshot.PhaseDeleting {
		return fmt.Errorf("image snapshot %s is %s and has no images to keep an access list of: %w", o.Name, o.Status.Phase, errdefs.ErrFailedPrecondition)
	}
	has := func(img imagesnapshot.Image) bool {
		return img.Reference == list.Image && img.Platform == list.Platform
	}
	if !slices.ContainsFunc(o.Status.Images, has) {
		return &imagesnapshot.FieldError{Field: "list", Detail: fmt.Sprintf("is of image %s for %s, which image snapshot %s does not have", list.Image, list.Platform, o.Name)}
	}
	return s.lists.PutAccessList(ctx, o.ID, list)
}

// AccessLists of an image snapshot, ordered by image and platform; only those of the image if that is not empty. An
// unknown image snapshot is errdefs.ErrNotFound.
func (s *Service) AccessLists(ctx context.Context, nameOrID, image string) ([]*accesslist.List, error) {
	o, err := s.Get(ctx, nameOrID)
	if err != nil || s.lists == nil {
		return nil, err
	}
	lists, err := s.lists.AccessLists(ctx, o.ID)
	if err != nil {
		return nil, err
	}
	return slices.DeleteFunc(lists, func(l *accesslist.List) bool { return image != "" && l.Image != image }), nil
}

// PutAccessList implements the service.
func (s *server) PutAccessList(ctx context.Context, req *imagesnapshotv1.PutAccessListRequest) (*imagesnapshotv1.PutAccessListResponse, error) {
	list, err := accesslist.Decode(req.GetList())
	if err != nil {
		return nil, statusOf(&imagesnapshot.FieldError{Field: "list", Detail: err.Error()})
	}
	if err := s.service.PutAccessList(ctx, req.GetNameOrId(), list); err != nil {
		return nil, statusOf(err)
	}
	m, err := accessListMessage(list, true)
	return &imagesnapshotv1.PutAccessListResponse{AccessList: m}, statusOf(err)
}

// ListAccessLists implements the service.
func (s *server) ListAccessLists(ctx context.Context, req *imagesnapshotv1.ListAccessListsRequest) (*imagesnapshotv1.ListAccessListsResponse, error) {
	lists, err := s.service.AccessLists(ctx, req.GetNameOrId(), req.GetImage())
	if err != nil {
		return nil, statusOf(err)
	}
	resp := &imagesnapshotv1.ListAccessListsResponse{}
	for _, l := range lists {
		m, err := accessListMessage(l, req.GetSummary())
		if err != nil {
			return nil, statusOf(err)
		}
		resp.AccessLists = append(resp.AccessLists, m)
	}
	return resp, nil
}

func accessListMessage(l *accesslist.List, summary bool) (*imagesnapshotv1.AccessList, error) {
	m := &imagesnapshotv1.AccessList{
		Image: l.Image, Platform: l.Platform, Recorded: timestamppb.New(l.Recorded), Files: int64(l.FileCount()), IndexDigest: l.Disk.String(),
	}
	m.MetadataBytes, m.FileBytes = l.Size()
	if summary {
		return m, nil
	}
	var err error
	m.List, err = l.Encode()
	return m, err
}
