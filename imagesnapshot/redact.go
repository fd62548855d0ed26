package imagesnapshot

import (
	"regexp"
	"strings"
)

// Redact takes out of a text what may be a secret, before it goes into a status, an event or a log: the given secrets,
// the user information and the query of every URL (registries send blobs from signed URLs), and the values of
// authorisation headers.
func Redact(text string, secrets ...string) string {
	const mask = "***"
	for _, s := range secrets {
		if s != "" {
			text = strings.ReplaceAll(text, s, mask)
		}
	}
	text = regexp.MustCompile(`([a-zA-Z][a-zA-Z0-9+.-]*://)[^/\s@"']*@`).ReplaceAllString(text, "${1}"+mask+"@")
	text = regexp.MustCompile(`([a-zA-Z][a-zA-Z0-9+.-]*://[^\s?"']*)\?[^\s"']*`).ReplaceAllString(text, "${1}?"+mask)
	header := regexp.MustCompile(`(?i)\b(bearer|basic)\s+[a-zA-Z0-9._~+/=-]{4,}`)
	return header.ReplaceAllStringFunc(text, func(found string) string {
		if strings.EqualFold(found, "basic auth") { // of "no basic auth credentials": a word, for it decodes to no user and password
			return found
		}
		return header.ReplaceAllString(found, "${1} "+mask)
	})
}
