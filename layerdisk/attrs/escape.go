package attrs

import (
	"errors"
	"fmt"
)

const hexDigits = "0123456789abcdef"

// Escape writes a string of any bytes as printable ASCII without spaces, equals signs and single backslashes: every
// other byte becomes \xhh with two lower case hex digits. It is the form of names and values in a listing, and safe to
// print on a terminal.
func Escape(s string) string {
	return string(appendEscaped(make([]byte, 0, len(s)), s))
}

// Printable makes a message safe to print: what is not printable ASCII is escaped, all else is left as it is.
func Printable(s string) string {
	b := make([]byte, 0, len(s))
	for i := range len(s) {
		if c := s[i]; c >= ' ' && c < 0x7f {
			b = append(b, c)
		} else {
			b = appendEscaped(b, s[i:i+1])
		}
	}
	return string(b)
}

func appendEscaped[T string | []byte](b []byte, s T) []byte {
	for i := range len(s) {
		if c := s[i]; isPlain(c) {
			b = append(b, c)
		} else {
			b = append(b, '\\', 'x', hexDigits[c>>4], hexDigits[c&15])
		}
	}
	return b
}

func isPlain(c byte) bool {
	return c > ' ' && c < 0x7f && c != '\\' && c != '='
}

// unescape is the inverse of Escape. It accepts only what Escape returns.
func unescape(b []byte) (string, error) {
	out := make([]byte, 0, len(b))
	for i := 0; i < len(b); i++ {
		if b[i] != '\\' {
			if !isPlain(b[i]) {
				return "", fmt.Errorf("byte %#02x is not escaped", b[i])
			}
			out = append(out, b[i])
			continue
		}
		if i+3 >= len(b) || b[i+1] != 'x' {
			return "", errors.New("backslash without x and two hex digits")
		}
		hi, ok1 := unhex(b[i+2])
		lo, ok2 := unhex(b[i+3])
		c := hi<<4 | lo
		if !ok1 || !ok2 || isPlain(c) {
			return "", fmt.Errorf("%q is not the escape of a byte that needs one", b[i:i+4])
		}
		out = append(out, c)
		i += 3
	}
	return string(out), nil
}

func unhex(c byte) (byte, bool) {
	switch {
	case c >= '0' && c <= '9':
		return c - '0', true
	case c >= 'a' && c <= 'f':
		return c - 'a' + 10, true
	}
	return 0, false
}
