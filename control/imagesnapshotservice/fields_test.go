package imagesnapshotservice

import (
	"reflect"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/reflect/protoreflect"

	"berth.dev/berth/imagesnapshot"
	imagesnapshotv1 "berth.dev/berth/proto/berth/imagesnapshot/v1"
)

// Every field of the resource that a request can set has the name in error details that the .proto gives it.
func TestFieldsAreThoseOfTheProto(t *testing.T) {
	request := (&imagesnapshotv1.CreateImageSnapshotRequest{}).ProtoReflect().Descriptor()
	// What the life cycle sets, and what has no field of its own.
	skip := map[string]bool{
		"id": true, "resourceVersion": true, "generation": true, "created": true, "deletionRequested": true, "origin": true, "spec.copies": true,
	}
	seen := 0
	var walk func(prefix string, typ reflect.Type)
	walk = func(prefix string, typ reflect.Type) {
		for i := range typ.NumField() {
			f := typ.Field(i)
			name, _, _ := strings.Cut(f.Tag.Get("json"), ",")
			field := prefix + name
			if !skip[field] {
				seen++
				for _, at := range []string{field, field + "[3]"} {
					requireField(t, request, protoField(at))
				}
			}
			inner := f.Type
			if inner.Kind() == reflect.Slice {
				inner, field = inner.Elem(), field+"[0]"
			}
			if inner.Kind() == reflect.Struct && inner.PkgPath() == reflect.TypeFor[imagesnapshot.Spec]().PkgPath() {
				walk(field+".", inner)
			}
		}
	}
	walk("", reflect.TypeFor[imagesnapshot.Metadata]())
	walk("spec.", reflect.TypeFor[imagesnapshot.Spec]())
	require.Greater(t, seen, 20)
}

// requireField follows a path of names through messages.
func requireField(t *testing.T, message protoreflect.MessageDescriptor, path string) {
	t.Helper()
	for part := range strings.SplitSeq(path, ".") {
		name, _, _ := strings.Cut(part, "[")
		require.NotNil(t, message, "%s leads below a field that is no message", path)
		f := message.Fields().ByName(protoreflect.Name(name))
		require.NotNil(t, f, "%s: the .proto has no %s in %s", path, name, message.FullName())
		message = f.Message()
	}
}
