package snapshotter

import "strings"

const (
	refSelector    = `labels."` + labelRef + `"==`
	parentSelector = `,parent==`
)

// targetFilter recognises the one filter that containerd's metadata store walks with, in every version from 1.7 to 2.4:
// labels."containerd.io/snapshot.ref"==sha256:…,parent=="key of the parent". Anything written otherwise is left to the
// store, even if it means the same.
func targetFilter(filters []string) (ref, parent string, ok bool) {
	if len(filters) != 1 {
		return "", "", false
	}
	rest, ok := strings.CutPrefix(filters[0], refSelector)
	if !ok {
		return "", "", false
	}
	ref, rest, ok = strings.Cut(rest, parentSelector)
	if !ok || ref == "" {
		return "", "", false
	}
	if inner, quoted := unquotePlain(ref); quoted {
		ref = inner
	} else if !isPlainValue(ref) {
		return "", "", false
	}
	parent, ok = unquotePlain(rest)
	return ref, parent, ok
}

// unquotePlain takes the quotes off a value that needs no escapes.
func unquotePlain(s string) (string, bool) {
	if len(s) < 2 || s[0] != '"' || s[len(s)-1] != '"' {
		return "", false
	}
	inner := s[1 : len(s)-1]
	for i := range len(inner) {
		if c := inner[i]; c < ' ' || c > '~' || c == '"' || c == '\\' {
			return "", false
		}
	}
	return inner, true
}

// isPlainValue is true of what containerd's filter language takes literally without quotes, as far as digests need it.
func isPlainValue(s string) bool {
	for i := range len(s) {
		c := s[i]
		letter := c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9'
		if !letter && (i == 0 || !strings.ContainsRune(":+._-", rune(c))) {
			return false
		}
	}
	return true
}
