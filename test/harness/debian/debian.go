// Package debian makes real images from Debian packages, layer by layer as a Dockerfile would, and keeps them in a
// registry's storage in the cache directory, so that they are made once per machine.
package debian

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"strings"
)

// Step makes one layer on top of the ones before it.
type Step struct {
	// Packages to install with apt.
	Packages []string
	// Script runs in the image after that, with sh -eu.
	Script string
}

// Image is a recipe.
type Image struct {
	// Repository with tag, such as "python:1".
	Repository string
	// Steps from the lowest layer up. Images that begin with the same steps share those layers.
	Steps []Step
	// Command of the image, and Check, a command that shows that the content is there by ending with status 0.
	Command, Check []string
}

// baseStep is the minimal Debian that every other image starts with; made by mmdebstrap, not in a chroot.
func baseStep() Step { return Step{Script: "mmdebstrap minbase bookworm"} }

func pythonSteps() []Step {
	return []Step{baseStep(), {Packages: []string{"python3"}}}
}

// Busybox is about 2 MB in two layers.
func Busybox() Image {
	return Image{
		Repository: "busybox:1",
		Steps:      []Step{{Script: "busybox"}, {Script: "busybox app"}},
		Command:    []string{"/bin/sh", "/app/run"},
		Check:      []string{"/bin/sh", "/app/run", "check"},
	}
}

// Web is a web server with a small site: it shares its lowest layer with the other Debian images.
func Web() Image {
	return Image{
		Repository: "web:1",
		Steps: []Step{
			baseStep(),
			{Packages: []string{"nginx-light"}},
			{Script: `for i in $(seq 500); do mkdir -p /srv/site/$((i % 20)); echo "page $i" > /srv/site/$((i % 20))/$i.html; done`},
		},
		Command: []string{"/usr/sbin/nginx", "-g", "daemon off;"},
		Check:   []string{"/usr/sbin/nginx", "-V"},
	}
}

// Python is an interpreter with a small application.
func Python() Image {
	return Image{
		Repository: "python:1",
		Steps:      append(pythonSteps(), Step{Script: `mkdir /app; echo 'print("ready")' > /app/main.py`}),
		Command:    []string{"/usr/bin/python3", "/app/main.py"},
		Check:      []string{"/usr/bin/python3", "-c", "import ssl, json, sqlite3"},
	}
}

func scienceSteps() []Step {
	return append(pythonSteps(),
		Step{Packages: []string{"python3-numpy", "python3-pandas"}},
		Step{Packages: []string{"python3-django", "python3-boto3", "redis-server"}},
		Step{Script: `rm -rf /usr/share/doc /usr/share/man /usr/share/locale
mkdir -p /app; for i in $(seq 2000); do mkdir -p /app/data/$((i % 50)); echo "record $i" > /app/data/$((i % 50))/$i.json; done`},
	)
}

// Science is of medium size, about 150 to 200 MB compressed, 500 MB unpacked: numpy, pandas, django and small files,
// with a layer that deletes.
func Science() Image {
	return Image{
		Repository: "science:1",
		Steps:      scienceSteps(),
		Command:    []string{"/usr/bin/python3", "-c", "import pandas; print(pandas.__version__)"},
		Check:      []string{"/usr/bin/python3", "-c", "import numpy, pandas"},
	}
}

// Scipy is about 1.2 GB unpacked: what programs that compute load when they start, thousands of files of them.
func Scipy() Image {
	load := []string{"/usr/bin/python3", "-c", "import scipy.optimize, scipy.stats, pandas, sklearn.linear_model; print('ready')"}
	return Image{
		Repository: "scipy:1",
		Steps: append(pythonSteps(),
			Step{Packages: []string{"python3-scipy", "python3-pandas", "python3-sklearn", "python3-matplotlib"}},
			Step{Script: `mkdir /app; echo 'print("ready")' > /app/main.py`},
		),
		Command: load,
		Check:   load,
	}
}

// Everything is large, about 2.5 GB unpacked: compilers, browsers, an office, fonts and 256 MiB that do not compress,
// as model weights do not.
func Everything() Image {
	return Image{
		Repository: "everything:1",
		Steps: append(scienceSteps(),
			Step{Packages: []string{"gcc", "g++", "make", "git"}},
			Step{Packages: []string{"openjdk-17-jre-headless"}},
			Step{Packages: []string{"clang-14", "lld-14"}},
			Step{Packages: []string{"chromium"}},
			Step{Packages: []string{"fonts-noto-cjk"}},
			Step{Packages: []string{"libreoffice-core-nogui", "libreoffice-writer-nogui", "libreoffice-calc-nogui"}},
			Step{Packages: []string{"postgresql", "ffmpeg"}},
			Step{Script: `mkdir -p /models; openssl rand -out /models/weights 268435456 2>/dev/null || head -c 268435456 /dev/urandom > /models/weights`},
		),
		Command: []string{"/usr/bin/python3", "-c", "print('ready')"},
		Check:   []string{"/usr/bin/clang-14", "--version"},
	}
}

// All images, the smaller ones first.
func All() []Image { return []Image{Busybox(), Web(), Python(), Science(), Everything()} }

// keys of the layers of an image: equal recipes up to a layer are the same layer.
func (i Image) keys() ([]string, error) {
	keys := make([]string, len(i.Steps))
	parent := ""
	for n, s := range i.Steps {
		b, err := json.Marshal(s)
		if err != nil {
			return nil, fmt.Errorf("encode step: %w", err)
		}
		sum := sha256.Sum256(append([]byte(parent), b...))
		parent = hex.EncodeToString(sum[:8])
		keys[n] = parent
	}
	return keys, nil
}

// script of a step, run by sh -eu in the image.
func (s Step) script() string {
	var b strings.Builder
	if len(s.Packages) > 0 {
		// The lists are bind-mounted from the cache and fetched once per run.
		fmt.Fprintf(&b, "export DEBIAN_FRONTEND=noninteractive\n"+
			"[ -e /var/lib/apt/lists/.fetched ] || { apt-get -qq update && : > /var/lib/apt/lists/.fetched; }\n"+
			"apt-get -qq -o Dpkg::Use-Pty=0 install -y --no-install-recommends %s\n", strings.Join(s.Packages, " "))
	}
	b.WriteString(s.Script)
	return b.String()
}
