package layerdisk

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"unicode/utf8"

	"github.com/opencontainers/go-digest"
)

// Parse decodes an index and checks all that can be checked without the disk; see the specification for the rules.
// Unknown fields are ignored. Errors are ErrVersion and ErrCorrupt.
func Parse(data []byte) (*Index, error) {
	if len(data) > MaxIndexBytes {
		return nil, fmt.Errorf("%w: index has %d bytes, at most %d are allowed", ErrCorrupt, len(data), MaxIndexBytes)
	}
	if err := checkJSON(data); err != nil {
		return nil, fmt.Errorf("%w: index: %w", ErrCorrupt, err)
	}
	// The version decides what the rest means, so it is read before the rest.
	var version struct {
		FormatVersion string `json:"formatVersion"`
	}
	if err := json.Unmarshal(data, &version); err != nil {
		return nil, fmt.Errorf("%w: index: %w", ErrCorrupt, err)
	}
	major, err := majorVersion(version.FormatVersion)
	if err != nil {
		return nil, fmt.Errorf("%w: index: %w", ErrCorrupt, err)
	}
	if major != MajorVersion {
		return nil, versionError(version.FormatVersion)
	}
	ix := new(Index)
	if err := json.Unmarshal(data, ix); err != nil {
		return nil, fmt.Errorf("%w: index: %w", ErrCorrupt, err)
	}
	if err := ix.check(); err != nil {
		return nil, fmt.Errorf("%w: index: %w", ErrCorrupt, err)
	}
	return ix, nil
}

// ParseIdentified is Parse for bytes whose digest is wanted too, as the identity of the disk.
func ParseIdentified(data []byte) (*Index, Identity, error) {
	ix, err := Parse(data)
	if err != nil {
		return nil, Identity{}, err
	}
	return ix, Identity{UUID: ix.UUID, IndexDigest: digest.SHA256.FromBytes(data)}, nil
}

func majorVersion(s string) (int, error) {
	majorPart, minorPart, ok := strings.Cut(s, ".")
	if ok {
		major, err := parseDecimal(majorPart)
		if _, err2 := parseDecimal(minorPart); err == nil && err2 == nil {
			return major, nil
		}
	}
	if len(s) > maxNameBytes {
		s = s[:maxNameBytes]
	}
	return 0, fmt.Errorf("format version %q is not of the form %d.%d", s, MajorVersion, MinorVersion)
}

func parseDecimal(s string) (int, error) {
	n, err := strconv.ParseUint(s, 10, 16)
	if err == nil && strconv.FormatUint(n, 10) != s {
		err = strconv.ErrSyntax
	}
	return int(n), err
}

// checkJSON refuses documents that different JSON readers understand differently, or that cost more than they say:
// invalid UTF-8, names that are given twice, names that only a reader blind to case takes for known ones, deep nesting.
func checkJSON(data []byte) error {
	if !utf8.Valid(data) {
		return errors.New("not valid UTF-8")
	}
	dec := json.NewDecoder(bytes.NewReader(data))
	dec.UseNumber()
	return checkJSONValue(dec, 0, false)
}

// checkJSONValue reads one value. In a map, as against an object of the format, names are free.
func checkJSONValue(dec *json.Decoder, depth int, isMap bool) error {
	if depth > maxJSONDepth {
		return fmt.Errorf("more than %d levels of nesting", maxJSONDepth)
	}
	token, err := dec.Token()
	if err != nil {
		return err
	}
	switch token {
	case json.Delim('{'):
		if err := checkJSONMembers(dec, depth, isMap); err != nil {
			return err
		}
	case json.Delim('['):
		for dec.More() {
			if err := checkJSONValue(dec, depth+1, isMap); err != nil {
				return err
			}
		}
	default:
		return nil
	}
	_, err = dec.Token() // the closing bracket
	return err
}

func checkJSONMembers(dec *json.Decoder, depth int, isMap bool) error {
	seen := make(map[string]struct{})
	for dec.More() {
		token, err := dec.Token()
		if err != nil {
			return err
		}
		name, ok := token.(string)
		if !ok {
			return fmt.Errorf("%v where the name of a field should be", token)
		}
		if _, ok := seen[name]; ok {
			return fmt.Errorf("field %.64q is given twice", name)
		}
		seen[name] = struct{}{}
		if known := knownName(name); !isMap && known != "" && known != name {
			return fmt.Errorf("field %.64q must be spelled %q", name, known)
		}
		if err := checkJSONValue(dec, depth+1, name == "annotations"); err != nil {
			return err
		}
	}
	return nil
}

// knownName gives the spelling of the format's field that encoding/json would take name for, empty if none.
func knownName(name string) string {
	if len(name) > maxNameBytes {
		return ""
	}
	// The upper case of U+017F is S, the lower case of U+212A is k: encoding/json folds both.
	switch strings.ToLower(strings.ToUpper(name)) {
	case "formatversion":
		return "formatVersion"
	case "filesystem":
		return "fileSystem"
	case "rawindex":
		return "rawIndex"
	case "rawmanifest":
		return "rawManifest"
	case "rawconfig":
		return "rawConfig"
	case "chainid":
		return "chainID"
	case "diffid":
		return "diffID"
	case "stackbound":
		return "stackBound"
	case "unpackedbytes":
		return "unpackedBytes"
	case "mediatype":
		return "mediaType"
	case "artifacttype":
		return "artifactType"
	case "uuid", "created", "images", "layers", "chains", "reference", "platform", "index", "manifest", "config",
		"traced", "offset", "length", "files", "number", "blobs", "inodes", "attributes", "digest", "size", "parent", "urls", "annotations", "data",
		"architecture", "os", "os.version", "os.features", "variant":
		return strings.ToLower(strings.ToUpper(name))
	}
	return ""
}
