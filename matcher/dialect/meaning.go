package dialect

import (
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"berth.dev/berth/matcher"
)

const (
	// maxMatchCount is far above the containers of any pod; a greater number than the pod has never matches anyhow.
	maxMatchCount = 1000
	// MaxKeepDisk bounds how long a pod may ask for its disk to be kept.
	MaxKeepDisk = 30 * 24 * time.Hour
	// maxPinBytes bounds names and IDs: Kubernetes' names have 253 bytes.
	maxPinBytes = 253
	// maxRegistries is the limit for an image snapshot as well (C-32).
	maxRegistries    = 10
	maxRegistryBytes = 253 + len(":65535")
)

// meanings are all that there are.
func meanings() []Meaning {
	return []Meaning{
		MeansAutoMatch, MeansStrategy, MeansPin, MeansPinName, MeansPinID, MeansConflict, MeansReject, MeansPerfectMatch,
		MeansMatchCount, MeansCreate, MeansKeepDisk, MeansPlainHTTP, MeansInsecure, MeansResultName, MeansResultID,
	}
}

// isResult reports whether berth writes the annotation and does not read it.
func (m Meaning) isResult() bool { return m == MeansResultName || m == MeansResultID }

// canonical checks a value and gives the form in which equal values are equal. The error says what is allowed.
func (m Meaning) canonical(value string) (string, error) {
	switch m {
	case MeansAutoMatch, MeansReject, MeansPerfectMatch, MeansCreate:
		if value != truth && value != falsehood { // C-14
			return "", errors.New("want " + wantBoolean)
		}
		return value, nil
	case MeansStrategy:
		if _, err := matcher.ParseOrder(value); err != nil {
			return "", errors.New("want one of saved, size, quantity, degree")
		}
		return value, nil
	case MeansConflict:
		if _, err := matcher.ParseConflictPolicy(value); err != nil {
			return "", errors.New("want one of pin-wins, pin-wins-silently, reject, reject-both")
		}
		return value, nil
	case MeansPin, MeansPinName, MeansPinID:
		return canonicalPin(value)
	case MeansMatchCount:
		return canonicalNumber(value, 1, maxMatchCount)
	case MeansKeepDisk:
		return canonicalNumber(value, 0, int(MaxKeepDisk/time.Minute))
	case MeansPlainHTTP, MeansInsecure:
		return canonicalHosts(value)
	default:
		return "", fmt.Errorf("meaning %q is not for reading", m)
	}
}

func canonicalPin(value string) (string, error) {
	if value == "" {
		return "", errors.New("want the image snapshot's name or ID, or no annotation at all")
	}
	if len(value) > maxPinBytes {
		return "", fmt.Errorf("it has %d bytes, at most %d are allowed", len(value), maxPinBytes)
	}
	if strings.ContainsFunc(value, func(r rune) bool { return r <= ' ' || r >= 0x7f }) {
		return "", errors.New("want printable ASCII without blanks")
	}
	return value, nil
}

func canonicalNumber(value string, low, high int) (string, error) {
	n, err := strconv.Atoi(value)
	if err != nil || n < low || n > high || strings.HasPrefix(value, "+") {
		return "", fmt.Errorf("want a whole number within %d..%d", low, high)
	}
	return strconv.Itoa(n), nil
}

// canonicalHosts sorts a list of registries.
func canonicalHosts(value string) (string, error) {
	var hosts []string
	for part := range strings.SplitSeq(value, ",") {
		host := strings.ToLower(strings.TrimSpace(part))
		switch {
		case host == "" || len(host) > maxRegistryBytes:
			return "", fmt.Errorf("want host or host:port, separated by commas, of 1 to %d bytes each", maxRegistryBytes)
		case strings.ContainsFunc(host, notOfHost):
			return "", errors.New("want host or host:port, separated by commas, without http:// or path")
		}
		if !slices.Contains(hosts, host) {
			hosts = append(hosts, host)
		}
		if len(hosts) > maxRegistries {
			return "", fmt.Errorf("more than %d registries", maxRegistries)
		}
	}
	slices.Sort(hosts)
	return strings.Join(hosts, ","), nil
}

func notOfHost(r rune) bool {
	return (r < 'a' || r > 'z') && (r < '0' || r > '9') && !strings.ContainsRune(".-:[]_", r)
}
