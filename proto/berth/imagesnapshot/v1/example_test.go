package imagesnapshotv1_test

import (
	"context"
	"errors"
	"fmt"
	"io"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"

	imagesnapshotv1 "berth.dev/berth/proto/berth/imagesnapshot/v1"
)

// Create an image snapshot and wait until nodes can use it.
func Example() {
	if err := create(context.Background(), "unix:/run/berth/berthd.sock"); err != nil {
		fmt.Println(err)
	}
}

func create(ctx context.Context, target string) error {
	conn, err := grpc.NewClient(target, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		return err
	}
	defer conn.Close()
	client := imagesnapshotv1.NewImageSnapshotServiceClient(conn)
	created, err := client.CreateImageSnapshot(ctx, &imagesnapshotv1.CreateImageSnapshotRequest{
		Name:        "nightly",
		ClientToken: "deploy-1234", // repeating the request makes no second one
		Spec:        &imagesnapshotv1.ImageSnapshotSpec{Images: []string{"nginx:1.27"}, SizeAsNeeded: true, RetentionDays: 7},
	})
	if err != nil {
		return explain(err)
	}
	watch, err := client.WatchImageSnapshots(ctx, &imagesnapshotv1.WatchImageSnapshotsRequest{
		Filter: &imagesnapshotv1.ImageSnapshotFilter{NameOrId: created.GetImageSnapshot().GetId()},
	})
	if err != nil {
		return err
	}
	for {
		change, err := watch.Recv()
		if errors.Is(err, io.EOF) {
			return errors.New("it was deleted, or berthd stops")
		}
		if err != nil {
			return err
		}
		switch st := change.GetImageSnapshot().GetStatus(); st.GetPhase() {
		case imagesnapshotv1.ImageSnapshotPhase_IMAGE_SNAPSHOT_PHASE_AVAILABLE:
			return nil
		case imagesnapshotv1.ImageSnapshotPhase_IMAGE_SNAPSHOT_PHASE_FAILED, imagesnapshotv1.ImageSnapshotPhase_IMAGE_SNAPSHOT_PHASE_UNAVAILABLE:
			return fmt.Errorf("%s: %s", st.GetReason(), st.GetMessage())
		default:
		}
	}
}

// explain an error field by field where it is about the request.
func explain(err error) error {
	st := status.Convert(err)
	if st.Code() != codes.InvalidArgument {
		return err
	}
	for _, detail := range st.Details() {
		if bad, ok := detail.(*errdetails.BadRequest); ok {
			for _, v := range bad.GetFieldViolations() {
				fmt.Printf("%s: %s\n", v.GetField(), v.GetDescription())
			}
		}
	}
	return err
}
