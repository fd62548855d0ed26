package config_test

import (
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/stretchr/testify/require"

	"berth.dev/berth/internal/config"
)

func TestParseAutomatic(t *testing.T) {
	c, err := config.Parse([]byte(`
[automatic]
enabled = true
owner = "team"
quota = 3
min_image_mib = 10
allow = ["docker.io/library", "registry.example:5000/", "localhost/x"]
deny = ["docker.io/library/nginx"]
delay = "0s"
retry = "1h"
[[automatic.registry]]
server = "registry.example:5000"
secret = "pull"
plain_http = true
insecure_skip_verify = true
`))
	require.NoError(t, err)
	want := config.Automatic{
		Enabled: true, Owner: "team", Quota: 3, MinImageMiB: 10, Allow: []string{"docker.io/library", "registry.example:5000/", "localhost/x"},
		Deny: []string{"docker.io/library/nginx"}, Retry: config.Duration(time.Hour),
		Registries: []config.AutomaticRegistry{{Server: "registry.example:5000", Secret: "pull", PlainHTTP: true, InsecureSkipVerify: true}},
	}
	require.Equal(t, want, c.Automatic)
}

func TestParseRefusesAutomatic(t *testing.T) {
	for text, want := range map[string]string{
		"quota = -1":                          "automatic.quota: -1",
		"min_image_mib = -1":                  "automatic.min_image_mib: -1",
		`delay = "2h"`:                        "automatic.delay: 2h0m0s",
		`retry = "1s"`:                        "automatic.retry: 1s",
		`owner = "a\nb"`:                      "automatic.owner",
		`allow = ["nginx"]`:                   `automatic.allow: "nginx" is no beginning of a reference`,
		`allow = ["library/nginx"]`:           "automatic.allow",
		`deny = ["https://registry.example"]`: "automatic.deny",
		`deny = [""]`:                         "automatic.deny",
		"[[automatic.registry]]\nserver = \"https://registry.example\"": "automatic.registry[0].server",
	} {
		_, err := config.Parse([]byte("[automatic]\n" + text))
		require.ErrorIs(t, err, errdefs.ErrInvalidArgument, text)
		require.ErrorContains(t, err, want)
	}
}
