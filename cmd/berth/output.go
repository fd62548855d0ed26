package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"strings"
	"text/tabwriter"
	"unicode"

	"github.com/docker/go-units"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
)

// writeJSON writes v indented. Names are written with underscores, as in the API.
func writeJSON(w io.Writer, v any) error {
	tree, err := jsonTree(json.Marshal(v))
	if err != nil {
		return fmt.Errorf("encode answer: %w", err)
	}
	return writeTree(w, underscored(tree))
}

// writeMessage writes a message as JSON with every field, so that scripts need no defaults. Unlike in the JSON of
// protobuf, 64-bit numbers are numbers.
func writeMessage(w io.Writer, m proto.Message) error {
	tree, err := jsonTree(protojson.MarshalOptions{EmitDefaultValues: true, UseProtoNames: true}.Marshal(m))
	if err != nil {
		return fmt.Errorf("encode answer: %w", err)
	}
	return writeTree(w, numbered(tree, m.ProtoReflect().Descriptor()))
}

func writeTree(w io.Writer, tree any) error {
	enc := json.NewEncoder(w)
	enc.SetIndent("", "  ")
	enc.SetEscapeHTML(false)
	return enc.Encode(tree)
}

func jsonTree(data []byte, err error) (tree any, _ error) {
	if err != nil {
		return nil, err
	}
	dec := json.NewDecoder(bytes.NewReader(data))
	dec.UseNumber()
	return tree, dec.Decode(&tree)
}

// underscored turns the names in objects, such as diffID, into those of the API, such as diff_id.
func underscored(tree any) any {
	switch t := tree.(type) {
	case map[string]any:
		named := make(map[string]any, len(t))
		for name, value := range t {
			named[underscore(name)] = underscored(value)
		}
		return named
	case []any:
		for i := range t {
			t[i] = underscored(t[i])
		}
	}
	return tree
}

func underscore(name string) string {
	var b strings.Builder
	for i, r := range strings.ReplaceAll(name, "ID", "Id") {
		if unicode.IsUpper(r) {
			if i > 0 {
				b.WriteByte('_')
			}
			r = unicode.ToLower(r)
		}
		b.WriteRune(r)
	}
	return b.String()
}

// numbered turns the strings that protobuf's JSON has for 64-bit integers into numbers.
func numbered(tree any, message protoreflect.MessageDescriptor) any {
	fields, ok := tree.(map[string]any)
	if !ok {
		return tree // a well-known type, such as a time
	}
	for i := range message.Fields().Len() {
		f := message.Fields().Get(i)
		value, ok := fields[string(f.Name())]
		if !ok {
			continue
		}
		switch {
		case f.IsMap():
			if entries, ok := value.(map[string]any); ok {
				for key := range entries {
					entries[key] = numberedField(entries[key], f.MapValue())
				}
			}
		case f.IsList():
			if list, ok := value.([]any); ok {
				for i := range list {
					list[i] = numberedField(list[i], f)
				}
			}
		default:
			fields[string(f.Name())] = numberedField(value, f)
		}
	}
	return tree
}

func numberedField(value any, f protoreflect.FieldDescriptor) any {
	if f.Message() != nil {
		return numbered(value, f.Message())
	}
	switch f.Kind() {
	case protoreflect.Int64Kind, protoreflect.Sint64Kind, protoreflect.Sfixed64Kind, protoreflect.Uint64Kind, protoreflect.Fixed64Kind:
		if text, ok := value.(string); ok {
			return json.Number(text)
		}
	default:
	}
	return value
}

// writeTable writes rows in aligned columns, the first row as their heads.
func writeTable(w io.Writer, rows [][]string) error {
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	for _, row := range rows {
		if _, err := fmt.Fprintln(t, strings.Join(row, "\t")); err != nil {
			return err
		}
	}
	return t.Flush()
}

// humanSize formats a size for tables; JSON has bytes.
func humanSize(bytes int64) string {
	if bytes <= 0 {
		return "-"
	}
	return units.BytesSize(float64(bytes))
}

func orDash(s string) string {
	if s == "" {
		return "-"
	}
	return s
}
