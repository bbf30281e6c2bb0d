{{- define "netpol.labels" -}}
app.kubernetes.io/name: netpol
app.kubernetes.io/component: {{ .component }}
app.kubernetes.io/managed-by: {{ .root.Release.Service }}
app.kubernetes.io/instance: {{ .root.Release.Name }}
app.kubernetes.io/version: {{ .root.Chart.AppVersion | quote }}
helm.sh/chart: {{ printf "%s-%s" .root.Chart.Name .root.Chart.Version }}
{{- end }}

{{- define "netpol.selector" -}}
app.kubernetes.io/name: netpol
app.kubernetes.io/component: {{ . }}
{{- end }}

{{- define "netpol.image" -}}
{{- if .Values.image.digest -}}
{{ .Values.image.repository }}@{{ .Values.image.digest }}
{{- else -}}
{{ .Values.image.repository }}:{{ .Values.image.tag | default .Chart.AppVersion }}
{{- end -}}
{{- end }}

{{- define "netpol.podSecurity" -}}
# bpffs and what netpol keeps belong to root. Root without the capabilities below is an ordinary user.
runAsUser: 0
runAsGroup: 0
seccompProfile:
  type: RuntimeDefault
# The runtimes' default profile forbids writing below /sys/fs/bpf.
appArmorProfile:
  type: {{ .Values.appArmor }}
{{- with .Values.seLinuxType }}
# The same for SELinux, where it is on.
seLinuxOptions:
  type: {{ . }}
{{- end }}
{{- end }}

{{- define "netpol.pin" -}}
{{- with .Values.pin }}
- name: NETPOL_PIN
  value: {{ . | quote }}
{{- end }}
{{- end }}

{{- /* Probes come to the node's address, where an agent that listens on loopback alone does not hear them. */}}
{{- define "netpol.probeHost" -}}
{{- if hasPrefix "127." .Values.listen.address -}}
{{ .Values.listen.address }}
{{- else if eq .Values.listen.address "[::1]" -}}
::1
{{- end -}}
{{- end }}
