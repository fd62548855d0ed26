package config

import (
	"fmt"
	"slices"
	"strings"
	"time"
)

// Duration is a time.Duration written as "1m30s".
type Duration time.Duration

// UnmarshalText reads what time.ParseDuration reads.
func (d *Duration) UnmarshalText(text []byte) error {
	v, err := time.ParseDuration(string(text))
	if err != nil {
		return fmt.Errorf("%q is no duration, write it like \"90s\" or \"1h30m\"", text)
	}
	*d = Duration(v)
	return nil
}

// MarshalText writes what UnmarshalText reads.
func (d Duration) MarshalText() ([]byte, error) { return []byte(d.String()), nil }

// Std is the duration as the standard library has it.
func (d Duration) Std() time.Duration { return time.Duration(d) }

// String is the duration as time.Duration writes it.
func (d Duration) String() string { return time.Duration(d).String() }

// LogLevel is the least important level that is logged.
type LogLevel string

// Log levels, from the most talkative.
const (
	LogTrace LogLevel = "trace"
	LogDebug LogLevel = "debug"
	LogInfo  LogLevel = "info"
	LogWarn  LogLevel = "warn"
	LogError LogLevel = "error"
)

// LogFormat is how a log record is written.
type LogFormat string

// Log formats.
const (
	LogText LogFormat = "text"
	LogJSON LogFormat = "json"
)

// Protocol is how a layer that a disk has is reported to containerd; docs/snapshotter.md explains the two.
type Protocol string

// Protocols.
const (
	// ProtocolAuto takes what the request shows that the containerd at hand understands.
	ProtocolAuto Protocol = "auto"
	// ProtocolSequential answers "already exists", which every containerd understands.
	ProtocolSequential Protocol = "sequential"
	// ProtocolEarlyMounts answers with read-only mounts, which containerd 2.4 and later understand.
	ProtocolEarlyMounts Protocol = "early-mounts"
)

// oneOf refuses a value that is not among the allowed ones. The decoder does not ask string types, so Validate does.
func oneOf[T ~string](v T, allowed ...T) error {
	if slices.Contains(allowed, v) {
		return nil
	}
	names := make([]string, len(allowed))
	for i, a := range allowed {
		names[i] = string(a)
	}
	return fmt.Errorf("%q is not one of %s", v, strings.Join(names, ", "))
}
