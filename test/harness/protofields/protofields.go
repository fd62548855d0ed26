// Package protofields tells what a message leaves out, so that tests notice fields that nobody fills in.
package protofields

import "google.golang.org/protobuf/reflect/protoreflect"

// Unset lists the fields of a message that have no value, or the zero one, such as "spec.images", in the order of the
// definition. Single messages in it are looked into, lists and maps are not.
func Unset(m protoreflect.ProtoMessage) []string { return unset("", m.ProtoReflect()) }

func unset(prefix string, m protoreflect.Message) (names []string) {
	fields := m.Descriptor().Fields()
	for i := range fields.Len() {
		field := fields.Get(i)
		name := prefix + string(field.Name())
		switch {
		case !m.Has(field):
			names = append(names, name)
		case field.Message() != nil && !field.IsList() && !field.IsMap():
			names = append(names, unset(name+".", m.Get(field).Message())...)
		}
	}
	return names
}
