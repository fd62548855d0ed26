package main

import (
	"encoding/json"
	"fmt"
	"io"
	"strings"
	"text/tabwriter"

	"github.com/docker/go-units"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
)

// writeJSON writes v indented, one value per line.
func writeJSON(w io.Writer, v any) error {
	enc := json.NewEncoder(w)
	enc.SetIndent("", "  ")
	return enc.Encode(v)
}

// writeMessage writes a message as JSON with every field, so that scripts need no defaults. protojson changes its
// spacing at random on purpose; the detour through encoding/json makes it stable.
func writeMessage(w io.Writer, m proto.Message) error {
	data, err := protojson.MarshalOptions{EmitDefaultValues: true, UseProtoNames: true}.Marshal(m)
	if err != nil {
		return fmt.Errorf("encode answer: %w", err)
	}
	return writeJSON(w, json.RawMessage(data))
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

// humanSize is for tables; JSON has bytes.
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
