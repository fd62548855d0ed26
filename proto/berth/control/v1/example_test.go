package controlv1_test

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

	controlv1 "berth.dev/berth/proto/berth/control/v1"
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
	client := controlv1.NewImageSnapshotServiceClient(conn)
	created, err := client.CreateImageSnapshot(ctx, &controlv1.CreateImageSnapshotRequest{
		Name:        "nightly",
		ClientToken: "deploy-1234", // repeating the request makes no second one
		Spec:        &controlv1.ImageSnapshotSpec{Images: []string{"nginx:1.27"}, SizeAsNeeded: true, RetentionDays: 7},
	})
	if err != nil {
		return explain(err)
	}
	watch, err := client.WatchImageSnapshots(ctx, &controlv1.WatchImageSnapshotsRequest{
		Filter: &controlv1.ImageSnapshotFilter{NameOrId: created.GetImageSnapshot().GetId()},
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
		case controlv1.ImageSnapshotPhase_IMAGE_SNAPSHOT_PHASE_AVAILABLE:
			return nil
		case controlv1.ImageSnapshotPhase_IMAGE_SNAPSHOT_PHASE_FAILED, controlv1.ImageSnapshotPhase_IMAGE_SNAPSHOT_PHASE_UNAVAILABLE:
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
