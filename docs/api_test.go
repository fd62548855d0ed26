// Package docs_test keeps true what the documents say about the code.
package docs_test

import (
	"os"
	"testing"

	"github.com/stretchr/testify/require"
	"google.golang.org/grpc"

	controlv1 "berth.dev/berth/proto/berth/control/v1"
	imagesnapshotv1 "berth.dev/berth/proto/berth/imagesnapshot/v1"
)

// Every method of the API is in api.md.
func TestAPIHasEveryMethod(t *testing.T) {
	page, err := os.ReadFile("api.md")
	require.NoError(t, err)
	for _, service := range []grpc.ServiceDesc{controlv1.ControlService_ServiceDesc, imagesnapshotv1.ImageSnapshotService_ServiceDesc} {
		for _, m := range service.Methods {
			require.Contains(t, string(page), "| `"+m.MethodName+"` |", service.ServiceName)
		}
		for _, s := range service.Streams {
			require.Contains(t, string(page), "| `"+s.StreamName+"` |", service.ServiceName)
		}
	}
}
