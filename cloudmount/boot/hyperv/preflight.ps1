<#
Tries on this computer, step by step, what CloudMount would do with Hyper-V, and tells as JSON what works.

NOT RUN ON WINDOWS by those who wrote it. ONLY FOR A COMPUTER WHOSE CRASH HURTS NOBODY: disks on drives of this
kind have made Windows crash (https://github.com/winfsp/winfsp/issues/651,
https://github.com/Ceiridge/WinFsp-MemFs-Extended/issues/18). Both wrote to the drive, which this does not.

    powershell -NoProfile -ExecutionPolicy Bypass -File .\preflight.ps1 -Disposable
    cloudmount hyperv preflight --read hyperv-preflight.json

It needs PowerShell 5.1, an administrator's console, and the drive (cloudmount mount X:) with a small disk on it, of
which it makes a copy. hyperv-preflight.json is written before and after each step: after a crash it tells which one
it was. What it makes lies in a folder beside this file, and is taken away in the end.
#>
[CmdletBinding()]
param(
    # The VHDX on the drive to try (left out: the smallest in the snapshots' folders of the drives here).
    [string] $Vhdx = '',

    # This computer may crash.
    [switch] $Disposable,

    # Larger disks are not copied, which the last steps need; bytes.
    [int64] $MostCopied = 21474836480
)

$Table = $null

Set-StrictMode -Version 3.0
$ErrorActionPreference = 'Stop'
$File = [IO.Path]::Combine($PSScriptRoot, 'hyperv-preflight.json')
$Work = [IO.Path]::Combine($PSScriptRoot, 'hyperv-preflight-' + [Guid]::NewGuid().ToString('N').Substring(0, 8))
$Child = [IO.Path]::Combine($Work, 'child.vhdx')
$Copy = [IO.Path]::Combine($Work, 'copy.vhdx')
$WatchedSeconds = 20
$Own = @{ Vm = $null; Mounted = $false }
$Report = [ordered] @{
    format = $Table.Format
    version = $Table.Version
    program = $Table.ProgramVersion
    host = $env:COMPUTERNAME
    time = [DateTime]::UtcNow.ToString('s') + 'Z'
    windows = [ordered] @{ caption = $null; build = $null; sku = $null }
    administrator = $false
    whpx = $null
    vhdx = $null
    work = $Work
    finished = $false
    left = @()
    steps = @()
}

function Get-Json {
    # In ASCII, so that no console and no redirection can spoil it.
    $json = ConvertTo-Json -InputObject $Report -Depth 4
    return [regex]::Replace($json, '[^\x00-\x7f]', { param($found) '\u{0:x4}' -f [int] [char] $found.Value })
}

function Save-Report {
    $bytes = [Text.Encoding]::ASCII.GetBytes((Get-Json))
    $stream = [IO.FileStream]::new($File, [IO.FileMode]::Create, [IO.FileAccess]::Write, [IO.FileShare]::Read, 4096, [IO.FileOptions]::WriteThrough)
    try {
        $stream.Write($bytes, 0, $bytes.Length)
        $stream.Flush($true)
    } finally {
        $stream.Dispose()
    }
}

function Invoke-Step {
    # Does one step, if those that it needs went well.
    param([string] $Name, [string[]] $Needs, [scriptblock] $Body)

    $step = [ordered] @{ name = $Name; tried = $true; ok = $null; seconds = $null; error = $null }
    $Report.steps += $step
    foreach ($need in $Needs) {
        if (@($Report.steps | Where-Object -FilterScript { $_.name -eq $need -and $_.ok }).Count -eq 0) {
            $step.tried = $false
            $step.error = "not tried, as $need did not work"
            return
        }
    }
    Save-Report
    [Console]::Error.WriteLine("$Name ...")
    $clock = [Diagnostics.Stopwatch]::StartNew()
    try {
        $null = & $Body
        $step.ok = $true
    } catch {
        $step.ok = $false
        $step.error = $_.Exception.Message
        [Console]::Error.WriteLine("    $($_.Exception.Message)")
    }
    $step.seconds = [Math]::Round($clock.Elapsed.TotalSeconds, 3)
    Save-Report
}

function Find-Vhdx {
    if ($Vhdx) {
        return $Vhdx
    }
    $found = @()
    foreach ($volume in [IO.DriveInfo]::GetDrives()) {
        if ($volume.IsReady -and $volume.Name.Substring(0, 2) -ne $env:SystemDrive) {
            foreach ($machine in [IO.Directory]::GetDirectories($volume.Name)) {
                $latest = [IO.Path]::Combine($machine, 'latest')
                if ([IO.File]::Exists([IO.Path]::Combine($latest, 'machine.json'))) {
                    $found += @([IO.DirectoryInfo]::new($latest).GetFiles('*.vhdx'))
                }
            }
        }
    }
    if ($found.Count -eq 0) {
        throw 'no drive here has a snapshot with a VHDX: mount it first (cloudmount mount X:), or name the file by -Vhdx'
    }
    return ($found | Sort-Object -Property 'Length' | Select-Object -First 1).FullName
}

function Confirm-Running {
    # Whether the VM runs, and goes on doing so for a while.
    param([int] $Seconds)

    for ($i = 0; $i -lt $Seconds; $i++) {
        Start-Sleep -Seconds 1
        $state = (Get-VM -Id $Own.Vm.Id).State
        if ($state -ne 'Running') {
            throw "the VM is $state"
        }
    }
}

function Remove-Traces {
    # Takes away what was made; what can't be is told.
    $parts = @(
        { if ($null -ne $Own.Vm) { Stop-VM -VM $Own.Vm -TurnOff -Force } }
        { if ($null -ne $Own.Vm) { Remove-VM -VM $Own.Vm -Force } }
        { if ($Own.Mounted) { Dismount-VHD -Path $Report.vhdx } }
        { if ([IO.Directory]::Exists($Work)) { Remove-Item -LiteralPath $Work -Recurse -Force } }
    )
    foreach ($part in $parts) {
        try {
            $null = & $part
        } catch {
            $Report.left += $_.Exception.Message
        }
    }
}

if (-not $Disposable) {
    [Console]::Error.WriteLine('This may crash the computer: run it on one that nobody needs, with -Disposable. Nothing was done.')
    exit 2
}
try {
    $identity = [Security.Principal.WindowsIdentity]::GetCurrent()
    $Report.administrator = ([Security.Principal.WindowsPrincipal] $identity).IsInRole([Security.Principal.WindowsBuiltInRole]::Administrator)
    Invoke-Step -Name 'windows' -Needs @() -Body {
        $system = Get-CimInstance -ClassName 'Win32_OperatingSystem'
        $Report.windows.caption = [string] $system.Caption
        $Report.windows.build = [string] $system.Version
        $Report.windows.sku = [int64] $system.OperatingSystemSKU
        $feature = Get-CimInstance -ClassName 'Win32_OptionalFeature' -Filter "Name = 'HypervisorPlatform'"
        $Report.whpx = [bool] ($null -ne $feature -and $feature.InstallState -eq 1)
    }
    Invoke-Step -Name 'hyper-v' -Needs @() -Body {
        if ($null -eq (Get-Command -Name 'New-VM' -ErrorAction SilentlyContinue)) {
            throw 'Hyper-V and its PowerShell module are not on'
        }
        Get-VM
    }
    Invoke-Step -Name 'drive' -Needs @() -Body {
        $Report.vhdx = Find-Vhdx
        $stream = [IO.File]::OpenRead($Report.vhdx)
        try {
            $head = [byte[]]::new(8)
            $count = $stream.Read($head, 0, 8)
            if ($count -ne 8 -or [Text.Encoding]::ASCII.GetString($head) -ne 'vhdxfile') {
                throw "$($Report.vhdx) does not begin as a VHDX does"
            }
        } finally {
            $stream.Dispose()
        }
    }
    Invoke-Step -Name 'test-vhd' -Needs 'hyper-v', 'drive' -Body {
        if (-not (Test-VHD -Path $Report.vhdx)) {
            throw 'Test-VHD says no'
        }
    }
    Invoke-Step -Name 'mount-vhd' -Needs 'hyper-v', 'drive' -Body {
        Mount-VHD -Path $Report.vhdx -ReadOnly -NoDriveLetter
        $Own.Mounted = $true
        Start-Sleep -Seconds 2
        Dismount-VHD -Path $Report.vhdx
        $Own.Mounted = $false
    }
    Invoke-Step -Name 'new-vhd' -Needs 'hyper-v', 'drive' -Body {
        [IO.Directory]::CreateDirectory($Work)
        New-VHD -Path $Child -ParentPath $Report.vhdx -Differencing
    }
    Invoke-Step -Name 'start-vm' -Needs 'new-vhd' -Body {
        $Own.Vm = New-VM -Name ([IO.Path]::GetFileName($Work)) -MemoryStartupBytes 536870912 -Generation 2 -NoVHD -Path $Work
        Set-VM -VM $Own.Vm -StaticMemory -CheckpointType Disabled -AutomaticStartAction Nothing -AutomaticStopAction TurnOff
        $attached = Add-VMHardDiskDrive -VM $Own.Vm -ControllerType SCSI -ControllerNumber 0 -ControllerLocation 0 -Path $Child -Passthru
        Set-VMFirmware -VM $Own.Vm -EnableSecureBoot Off -FirstBootDevice $attached
        Start-VM -VM $Own.Vm
        Confirm-Running -Seconds $WatchedSeconds
    }
    Invoke-Step -Name 'copy' -Needs 'start-vm' -Body {
        $size = [IO.FileInfo]::new($Report.vhdx).Length
        if ($size -gt $MostCopied) {
            throw "$($Report.vhdx) has $size bytes, more than -MostCopied: try a smaller disk"
        }
        Copy-Item -LiteralPath $Report.vhdx -Destination $Copy
        $icacls = [IO.Path]::Combine($env:SystemRoot, 'System32', 'icacls.exe')
        & $icacls $Copy '/grant' '*S-1-5-83-0:(R)' '/Q'
    }
    Invoke-Step -Name 'set-vhd' -Needs 'copy' -Body {
        Set-VHD -Path $Child -ParentPath $Copy -LeafPath $Child
        $now = [string] (Get-VHD -Path $Child).ParentPath
        if (-not $now.EndsWith('copy.vhdx', [StringComparison]::OrdinalIgnoreCase)) {
            throw "Hyper-V still tells $now for the parent"
        }
        Confirm-Running -Seconds $WatchedSeconds
    }
    Invoke-Step -Name 'start-local' -Needs 'set-vhd' -Body {
        Stop-VM -VM $Own.Vm -TurnOff -Force
        Start-VM -VM $Own.Vm
        Confirm-Running -Seconds $WatchedSeconds
    }
} finally {
    Remove-Traces
    $Report.finished = $true
    Save-Report
    Write-Output -InputObject (Get-Json)
}
