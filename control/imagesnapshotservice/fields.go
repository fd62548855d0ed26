package imagesnapshotservice

import (
	"regexp"
	"strings"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
)

// fieldNames are the names that the .proto has for fields that the resource names otherwise, with or without indexes.
func fieldNames() map[string]string {
	return map[string]string{
		"clientToken":                        "client_token",
		"spec.size":                          "spec.size_as_needed",
		"spec.size.gib":                      "spec.size_gib",
		"spec.size.asNeeded":                 "spec.size_as_needed",
		"spec.retentionDays":                 "spec.retention_days",
		"spec.registries.plainHTTP":          "spec.registries.plain_http",
		"spec.registries.insecureSkipVerify": "spec.registries.insecure_skip_verify",
		"spec.build.timeoutMinutes":          "spec.build.timeout_minutes",
		"spec.build.dnsServers":              "spec.build.dns_servers",
		"spec.reuseLayers":                   "spec.reuse_layers",
		"spec.copies.standard":               "spec.standard_copies",
		"spec.copies.flash":                  "spec.flash_copies",
	}
}

// protoField is the name that the .proto has for a field: clients rely on it.
func protoField(field string) string {
	index := regexp.MustCompile(`\[\d+\]`)
	name, ok := fieldNames()[index.ReplaceAllString(field, "")]
	if !ok {
		return field
	}
	// An index stays where it was: at the end of a list's name, or before the last word.
	if at := index.FindStringIndex(field); at != nil && at[1] == len(field) {
		return name + field[at[0]:]
	} else if at != nil {
		return field[:at[1]] + name[strings.LastIndex(name, "."):]
	}
	return name
}

// renamed says the fields of violations by their names in the .proto, and in the message as well. prefix is what the
// request leaves out of them.
func renamed(message, prefix string, violations []*errdetails.BadRequest_FieldViolation) string {
	for _, v := range violations {
		name := strings.TrimPrefix(protoField(v.GetField()), prefix)
		message = strings.ReplaceAll(message, v.GetField()+": ", name+": ")
		v.Field = name
	}
	return message
}
