package csi

import (
	"maps"
	"strings"
)

// ParameterPrefix begins the keys of parameters that TakeParameters passes on: "csi/type" is the parameter "type" of
// the CSI driver.
const ParameterPrefix = "csi/"

// TakeParameters gives those that are for the CSI driver, for blockdev.CreateVolumeRequest, and the keys of the others:
// those without ParameterPrefix, and those that the configuration sets otherwise, for what an administrator has decided
// is nobody else's to change.
func (d *Driver) TakeParameters(parameters map[string]string) (taken map[string]string, ignored []string) {
	taken = make(map[string]string)
	for key, value := range parameters {
		name, ours := strings.CutPrefix(key, ParameterPrefix)
		if !ours || name == "" || d.c.config.decides(name, value) {
			ignored = append(ignored, key)
			continue
		}
		taken[name] = value
	}
	return taken, ignored
}

// decides says whether the configuration sets a parameter to something else.
func (c Config) decides(name, value string) bool {
	for _, set := range []map[string]string{c.Parameters, c.RestoreParameters} {
		if v, ok := set[name]; ok && v != value {
			return true
		}
	}
	return false
}

// volumeParameters are all for a volume of a record. What is configured counts more than what was asked for.
func (c Config) volumeParameters(rec volumeRecord) map[string]string {
	all := make(map[string]string)
	maps.Copy(all, rec.Parameters)
	maps.Copy(all, c.Parameters)
	if rec.SourceSnapshotID != "" {
		maps.Copy(all, c.RestoreParameters)
	}
	return all
}
