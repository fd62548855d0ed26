// Package proto_test keeps what is promised about the APIs below.
package proto_test

import (
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protodesc"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/descriptorpb"

	controlv1 "berth.dev/berth/proto/berth/control/v1"
	imagesnapshotv1 "berth.dev/berth/proto/berth/imagesnapshot/v1"
)

// vendors are those whose products docs/matching.md speaks to, and other clouds, with the short names of products.
const vendors = "alibaba aliyun eci acr acs tencent tke eks cbs huawei cci cce evs volcengine vci byteplus baidu bci amazon aws ebs ecr " +
	"ec2 gcp gke azure aks openstack cinder ceph rbd"

// Nothing in the neutral API names a vendor, neither a field nor its description: what one of them alone has travels as
// a parameter.
func TestNoVendor(t *testing.T) {
	files, err := filepath.Glob("berth/*/v1/*.proto")
	require.NoError(t, err)
	require.Len(t, files, 2)
	// image_snapshot, ImageSnapshot and DNSServer are two words each.
	seam := regexp.MustCompile(`([a-z0-9])([A-Z])|([A-Z])([A-Z][a-z])`)
	separator := regexp.MustCompile(`[^A-Za-z0-9]+`)
	for _, file := range files {
		text, err := os.ReadFile(file)
		require.NoError(t, err)
		for _, word := range separator.Split(seam.ReplaceAllString(string(text), "$1$3 $2$4"), -1) {
			require.False(t, slices.Contains(strings.Fields(vendors), strings.ToLower(word)), "%s names %q", file, word)
		}
	}
}

// What is promised to clients is what there is: an old record would let later checks pass that must not.
func TestPromiseIsComplete(t *testing.T) {
	for _, descriptor := range []protoreflect.FileDescriptor{
		controlv1.File_berth_control_v1_control_proto, imagesnapshotv1.File_berth_imagesnapshot_v1_imagesnapshot_proto,
	} {
		file := protodesc.ToFileDescriptorProto(descriptor)
		recorded, err := os.ReadFile(filepath.Join(filepath.Dir(file.GetName()), "promise.binpb"))
		require.NoError(t, err)
		var set descriptorpb.FileDescriptorSet
		require.NoError(t, proto.Unmarshal(recorded, &set))
		byName := make(map[string]*descriptorpb.FileDescriptorProto)
		for _, f := range set.GetFile() {
			byName[f.GetName()] = f
		}
		require.True(t, proto.Equal(file, byName[file.GetName()]), `%s: run "make proto"`, file.GetName())
	}
}
