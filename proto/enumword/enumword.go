// Package enumword spells the values of the API's enums for people.
package enumword

import (
	"strings"

	"google.golang.org/protobuf/reflect/protoreflect"
)

// Other is the word for a value that this client does not know.
const Other = "other"

// Of is the value without the name of its enum, in lower case with hyphens: "in-use" for DISK_STATE_IN_USE. The value
// 0, which every enum has for "unspecified", has no word.
func Of(value protoreflect.Enum) string {
	if value.Number() == 0 {
		return ""
	}
	enum := value.Descriptor()
	known := enum.Values().ByNumber(value.Number())
	if known == nil {
		return Other
	}
	unspecified := string(enum.Values().ByNumber(0).Name())
	word := strings.TrimPrefix(string(known.Name()), strings.TrimSuffix(unspecified, "UNSPECIFIED"))
	return strings.ReplaceAll(strings.ToLower(word), "_", "-")
}
