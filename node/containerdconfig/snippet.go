package containerdconfig

import (
	"bytes"
	_ "embed"
	"fmt"
	"slices"
	"strings"
	"text/template"
)

// Settings are what the snippet says.
type Settings struct {
	Version Version
	// Snapshotter is the proxy plugin's name, which pulls name to use it.
	Snapshotter string
	// Socket and Root are berthd's.
	Socket, Root string
	// Platform of the node, as os/architecture[/variant].
	Platform string
	// CRI makes Kubernetes use berthd.
	CRI bool
}

//go:embed snippet.tmpl
var snippetText string

// Snippet returns TOML to put into containerd's configuration, with the reason for each part.
func Snippet(s Settings) ([]byte, error) {
	for _, v := range []string{s.Snapshotter, s.Socket, s.Root, s.Platform} {
		if v == "" || strings.ContainsAny(v, "'\"\\\n") {
			return nil, fmt.Errorf("%q cannot stand in containerd's configuration", v)
		}
	}
	t, err := template.New("snippet").Parse(snippetText)
	if err != nil {
		return nil, fmt.Errorf("read template: %w", err)
	}
	var out bytes.Buffer
	err = t.Execute(&out, map[string]any{
		"S":            s,
		"Format":       s.Version.ConfigVersion(),
		"Transfer":     `plugins."` + transferPlugin + `"`,
		"CRIPlugin":    criTable(s.Version),
		"Capabilities": s.Version.Capabilities(),
		"Rebase":       slices.Contains(s.Version.Capabilities(), capaRebase),
		"ByTransfer":   s.Version.pullsByTransfer(),
		"DropIns":      s.Version.defaultHasDropIns(),
		"Erofs":        s.Version.hasErofsDefault(),
		// platforms.FormatAll of a platform with the OS feature: "linux(+erofs)/amd64".
		"ErofsPlatform": strings.Replace(s.Platform, "/", "(+erofs)/", 1),
		"V1":            s.Version.Major < 2,
	})
	if err != nil {
		return nil, fmt.Errorf("write snippet: %w", err)
	}
	return out.Bytes(), nil
}

// transferPlugin has the same name in all versions.
const transferPlugin = "io.containerd.transfer.v1.local"

// criTable returns the name of the table that has CRI's snapshotter setting.
func criTable(v Version) string {
	if v.Major < 2 {
		return `plugins."io.containerd.grpc.v1.cri".containerd`
	}
	return `plugins."io.containerd.cri.v1.images"`
}
