// Package csisanity runs the conformance suite of the CSI project, csi-sanity, against "berth csi-loop".
package csisanity
