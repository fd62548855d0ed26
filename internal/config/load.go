package config

import (
	"bytes"
	_ "embed"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"

	"github.com/containerd/errdefs"
	"github.com/pelletier/go-toml/v2"
)

// maxSize bounds a configuration file; nobody writes one by hand that long.
const maxSize = 1 << 20

//go:embed default.toml
var defaultTOML []byte

// DefaultTOML is a file that says the same as Default, with an explanation of each key.
func DefaultTOML() []byte { return slices.Clone(defaultTOML) }

// CommentedTOML is DefaultTOML with every setting in a comment: a file to begin with. What nobody changes in it stays
// the default of whichever version reads it, and keys that an older version does not know do no harm.
func CommentedTOML() []byte {
	var b bytes.Buffer
	for line := range bytes.Lines(defaultTOML) {
		if line[0] != '#' && line[0] != '\n' {
			b.WriteByte('#')
		}
		b.Write(line)
	}
	return b.Bytes()
}

// Load reads the file over Default and validates the outcome. A file that is not there is errdefs.ErrNotFound, one
// that says something wrong errdefs.ErrInvalidArgument.
func Load(path string) (Config, error) {
	f, err := os.Open(path)
	if err != nil {
		if errors.Is(err, os.ErrNotExist) {
			return Config{}, fmt.Errorf("read configuration: %w: %w", err, errdefs.ErrNotFound)
		}
		return Config{}, fmt.Errorf("read configuration: %w", err)
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, maxSize+1))
	if err != nil {
		return Config{}, fmt.Errorf("read configuration %s: %w", path, err)
	}
	if len(data) > maxSize {
		return Config{}, fmt.Errorf("read configuration %s: longer than %d bytes: %w", path, maxSize, errdefs.ErrInvalidArgument)
	}
	c, err := Parse(data)
	if err != nil {
		return Config{}, fmt.Errorf("configuration %s: %w", path, err)
	}
	return c, nil
}

// Parse reads TOML over Default and validates the outcome; all errors are errdefs.ErrInvalidArgument.
func Parse(data []byte) (Config, error) {
	c := Default()
	if err := toml.NewDecoder(bytes.NewReader(data)).DisallowUnknownFields().Decode(&c); err != nil {
		return Config{}, describe(err)
	}
	if err := c.Validate(); err != nil {
		return Config{}, err
	}
	return c, nil
}

// describe turns a decoder's error into one that says where and what instead.
func describe(err error) error {
	var strict *toml.StrictMissingError
	if errors.As(err, &strict) {
		var all []error
		for i := range strict.Errors {
			e := &strict.Errors[i]
			line, _ := e.Position()
			all = append(all, fmt.Errorf("line %d: unknown key %s%s", line, strings.Join(e.Key(), "."), suggest(e.Key())))
		}
		return fmt.Errorf("%w: %w", errors.Join(all...), errdefs.ErrInvalidArgument)
	}
	var decode *toml.DecodeError
	if errors.As(err, &decode) {
		line, _ := decode.Position()
		where := fmt.Sprintf("line %d", line)
		if key := decode.Key(); len(key) > 0 {
			where += ": " + strings.Join(key, ".")
		}
		return fmt.Errorf("%s: %s: %w", where, strings.TrimPrefix(decode.Error(), "toml: "), errdefs.ErrInvalidArgument)
	}
	return fmt.Errorf("%w: %w", err, errdefs.ErrInvalidArgument)
}

// suggest names the nearest known key of the same section, or all of its keys if none is near.
func suggest(key []string) string {
	if len(key) == 0 {
		return ""
	}
	section := strings.Join(key[:len(key)-1], ".")
	known := sectionKeys(section)
	if len(known) == 0 {
		return ", there is no such section"
	}
	got := key[len(key)-1]
	best, distance := "", len(got)/2+1
	for _, k := range known {
		if d := editDistance(got, k); d < distance {
			best, distance = k, d
		}
	}
	if best != "" {
		return fmt.Sprintf(", did you mean %q?", best)
	}
	return ", known here: " + strings.Join(known, ", ")
}

// sectionKeys are the sorted keys of a section ("" is the top), read from default.toml so that there is one list.
func sectionKeys(section string) []string {
	if keys := commentedKeys(section); keys != nil {
		return keys
	}
	var all map[string]any
	if err := toml.Unmarshal(defaultTOML, &all); err != nil {
		return nil
	}
	table, top := all, section == ""
	if !top {
		table, _ = all[section].(map[string]any)
	}
	var keys []string
	for k := range table {
		keys = append(keys, k)
	}
	if top {
		keys = append(keys, "dialect", "disk", "drivers")
	}
	slices.Sort(keys)
	return keys
}

// commentedKeys are those of sections that default.toml has in a comment only.
func commentedKeys(section string) []string {
	driver, isDriver := strings.CutPrefix(section, "drivers.csi.")
	switch {
	case section == "disk":
		return []string{"name", "driver", "path", "volume", "volume_snapshot", "expect", "keep", "import"}
	case section == "dialect":
		return []string{
			"name", "prefix", "keys", "order", "conflict", "reject_unavailable", "pin_needs_match", "auto_default", "create_with_auto",
			"opt_in_label", "opt_in_by_key",
		}
	case section == "dialect.keys":
		return []string{"name", "meaning", "values", "words"}
	case strings.HasPrefix(section, "dialect.keys.words."):
		return []string{"meaning", "value"}
	case section == "drivers":
		return []string{"csi"}
	case isDriver && strings.HasSuffix(driver, ".secrets"):
		return []string{"provision", "volume_snapshot", "controller_publish", "node_stage", "node_publish"}
	case isDriver:
		return []string{"node", "controller", "directory", "timeout", "parameters", "volume_snapshot_parameters", "topology", "secrets"}
	}
	return nil
}

// editDistance is Levenshtein's, on bytes: keys are ASCII.
func editDistance(a, b string) int {
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		diagonal := row[0]
		row[0] = i + 1
		for j := range len(b) {
			substitute := diagonal
			if a[i] != b[j] {
				substitute++
			}
			diagonal = row[j+1]
			row[j+1] = min(substitute, row[j]+1, row[j+1]+1)
		}
	}
	return row[len(b)]
}
