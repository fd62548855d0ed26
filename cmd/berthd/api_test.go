package main

import (
	"testing"

	"github.com/stretchr/testify/require"
	reflectionv1 "google.golang.org/grpc/reflection/grpc_reflection_v1"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/descriptorpb"

	controlv1 "berth.dev/berth/proto/berth/control/v1"
	imagesnapshotv1 "berth.dev/berth/proto/berth/imagesnapshot/v1"
)

// A client that has only the socket learns the whole API from it: docs/api.md calls it with grpcurl in that way.
func TestAPIDescribesItself(t *testing.T) {
	t.Parallel()
	p := newProcess(t, "")
	p.start()
	stream, err := reflectionv1.NewServerReflectionClient(p.dial()).ServerReflectionInfo(t.Context())
	require.NoError(t, err)
	ask := func(req *reflectionv1.ServerReflectionRequest) *reflectionv1.ServerReflectionResponse {
		t.Helper()
		require.NoError(t, stream.Send(req))
		resp, err := stream.Recv()
		require.NoError(t, err)
		require.Nil(t, resp.GetErrorResponse())
		return resp
	}
	var names []string
	for _, s := range ask(&reflectionv1.ServerReflectionRequest{
		MessageRequest: &reflectionv1.ServerReflectionRequest_ListServices{},
	}).GetListServicesResponse().GetService() {
		names = append(names, s.GetName())
	}
	for service, pkg := range map[string]string{
		controlv1.ControlService_ServiceDesc.ServiceName:             "berth.control.v1",
		imagesnapshotv1.ImageSnapshotService_ServiceDesc.ServiceName: "berth.imagesnapshot.v1",
	} {
		require.Contains(t, names, service)
		files := ask(&reflectionv1.ServerReflectionRequest{
			MessageRequest: &reflectionv1.ServerReflectionRequest_FileContainingSymbol{FileContainingSymbol: service},
		}).GetFileDescriptorResponse().GetFileDescriptorProto()
		require.NotEmpty(t, files)
		var file descriptorpb.FileDescriptorProto
		require.NoError(t, proto.Unmarshal(files[0], &file))
		require.Equal(t, pkg, file.GetPackage())
	}
	require.NoError(t, stream.CloseSend())
	p.stop()
}
