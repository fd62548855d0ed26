package sysblock

import (
	"encoding/binary"
	"strings"
)

// The two pages of vital product data that name a SCSI device (SPC-5, 7.7.14 and 7.7.6). Their bytes come from the
// device: nothing in them is trusted.
const (
	vpdHeaderBytes        = 4
	designatorHeaderBytes = 4
	// maxDesignators is more than any device has.
	maxDesignators = 64

	codeSetASCII, codeSetUTF8 = 2, 3
)

// vpdPayload is what follows the header of a page, as long as that says and the bytes go; nil for another page.
func vpdPayload(page []byte, code byte) []byte {
	if len(page) < vpdHeaderBytes || page[1] != code {
		return nil
	}
	length := int(binary.BigEndian.Uint16(page[2:]))
	return page[vpdHeaderBytes:min(vpdHeaderBytes+length, len(page))]
}

// unitSerial is the text of page 0x80.
func unitSerial(page []byte) string {
	return strings.Trim(string(vpdPayload(page, 0x80)), " \x00")
}

// designators are the texts in page 0x83.
func designators(page []byte) []string {
	var all []string
	rest := vpdPayload(page, 0x83)
	for len(rest) >= designatorHeaderBytes && len(all) < maxDesignators {
		end := designatorHeaderBytes + int(rest[3])
		if end > len(rest) {
			break
		}
		if set := rest[0] & 0x0f; set == codeSetASCII || set == codeSetUTF8 {
			if s := strings.Trim(string(rest[designatorHeaderBytes:end]), " \x00"); s != "" {
				all = append(all, s)
			}
		}
		rest = rest[end:]
	}
	return all
}
