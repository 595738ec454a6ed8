<#
A machine from its backup, made for Hyper-V by CloudMount.

NOT RUN ON WINDOWS by those who wrote it: it was made from Microsoft's documentation. Try it on a computer
whose loss would not hurt, after "cloudmount hyperv preflight" there.

    powershell -NoProfile -ExecutionPolicy Bypass -File .\boot.ps1                  makes the VM, and starts it
    powershell -NoProfile -ExecutionPolicy Bypass -File .\boot.ps1 -Action GoLocal  puts it on the local copies

It needs PowerShell 5.1, and an administrator's console. Whatever the VM writes goes into the folder "disks" here. What
is particular to this machine is in the table below; everything after it is the same for all.
#>
[CmdletBinding()]
param(
    [ValidateSet('Start', 'GoLocal')]
    [string] $Action = 'Start',

    # The drive's letter, such as X: (left out: the one on which the snapshot is found).
    [string] $Drive = '',

    # A virtual switch to connect to (left out: no network, as a copy beside the server itself does harm).
    [string] $SwitchName = '',

    # The copies were completed and compared just now: they are not compared again.
    [switch] $Verified
)

$Table = $null

Set-StrictMode -Version 3.0
$ErrorActionPreference = 'Stop'
$Here = $PSScriptRoot
$IdFile = [IO.Path]::Combine($Here, 'vm.id')
$LocalFile = [IO.Path]::Combine($Here, 'is-local')
$LocalText = 'Its disks lie on the copies in this folder; no drive is needed.'
$MostPath = 259

function Get-LocalPath {
    param([string] $Relative)

    $path = [IO.Path]::Combine($Here, $Relative)
    if ($path.Length -gt $MostPath) {
        throw "$path has more than $MostPath characters, which Hyper-V does not take: put this folder nearer to the root of a disk"
    }
    return $path
}

function Get-DrivePath {
    param([string] $Relative)

    if ($Drive) {
        $roots = @($Drive.TrimEnd('\', ':') + ':\')
    } else {
        $roots = @([IO.DriveInfo]::GetDrives() | ForEach-Object -Process { $_.Name })
    }
    foreach ($root in $roots) {
        $path = [IO.Path]::Combine($root, $Relative)
        if ([IO.File]::Exists($path)) {
            return $path
        }
    }
    throw "no drive here has ${Relative}: mount it first (cloudmount mount X: gives it a letter that Hyper-V sees)"
}

function Confirm-Place {
    if ($Here.StartsWith('\\')) {
        throw "$Here is on another computer: put this folder on a disk of this one"
    }
    $volume = [IO.DriveInfo]::new([IO.Path]::GetPathRoot($Here))
    if ($volume.DriveFormat -notin 'NTFS', 'ReFS') {
        throw "$($volume.Name) is $($volume.DriveFormat): Hyper-V's disks need NTFS or ReFS"
    }
}

function Confirm-Copy {
    param([string] $Path)

    $how = "$($Table.Hydrate) ""$([IO.Path]::Combine($Here, 'copies'))"""
    if (-not [IO.File]::Exists($Path)) {
        throw "$Path is not there yet; it comes by: $how"
    }
    if (-not $Verified) {
        $program = $Table.Program
        & $program 'verify-local' $Path '--quiet' | Out-Null
        if ($LASTEXITCODE -ne 0) {
            throw "$Path is not complete (verify-local ended with $LASTEXITCODE); it is completed by: $how"
        }
    }
    # Worker processes of VMs are members of S-1-5-83-0. Attaching a disk gives them its files; whether changing
    # its parent does, is not documented.
    $icacls = [IO.Path]::Combine($env:SystemRoot, 'System32', 'icacls.exe')
    & $icacls $Path '/grant' '*S-1-5-83-0:(R)' '/Q' | Out-Null
    if ($LASTEXITCODE -ne 0) {
        throw "VMs can't be given access to $Path (icacls ended with $LASTEXITCODE)"
    }
}

function Get-Parent {
    param($Disk)

    if ($Table.Via -eq 'drive' -and -not [IO.File]::Exists($LocalFile)) {
        return Get-DrivePath -Relative $Disk.Drive
    }
    $copy = Get-LocalPath -Relative $Disk.Copy
    Confirm-Copy -Path $copy
    return $copy
}

function Get-OwnVm {
    if (-not [IO.File]::Exists($IdFile)) {
        return $null
    }
    $id = [Guid] [IO.File]::ReadAllText($IdFile).Trim()
    return Get-VM | Where-Object -FilterScript { $_.Id -eq $id } | Select-Object -First 1
}

function Add-Disk {
    # Gives back the child that was made, or nothing when it was there.
    param($Disk)

    $child = Get-LocalPath -Relative $Disk.Child
    $isThere = [IO.File]::Exists($child)
    if ($isThere -and [IO.File]::Exists($LocalFile)) {
        return
    }
    $parent = Get-Parent -Disk $Disk
    if ($isThere) {
        Set-VHD -Path $child -ParentPath $parent # the drive may have another letter today
        return
    }
    New-VHD -Path $child -ParentPath $parent -Differencing | Out-Null
    return $child
}

function Set-Hardware {
    param($Vm)

    $processors = [Math]::Min([int64] $Table.Processors, [int64] [Environment]::ProcessorCount)
    Set-VM -VM $Vm -ProcessorCount $processors -StaticMemory -CheckpointType Disabled -AutomaticStartAction Nothing -AutomaticStopAction ShutDown -Notes $Table.Notes
    if ((Get-Command -Name 'Set-VM').Parameters.ContainsKey('AutomaticCheckpointsEnabled')) {
        Set-VM -VM $Vm -AutomaticCheckpointsEnabled $false # Windows 10 and 11 make one at each start otherwise
    }
    if ($Table.Generation -eq 1) {
        foreach ($dvd in @(Get-VMDvdDrive -VM $Vm)) {
            Remove-VMDvdDrive -VMDvdDrive $dvd # it has the place of the third disk
        }
    }
    foreach ($disk in $Table.Disks) {
        while ($disk.Controller -eq 'SCSI' -and @(Get-VMScsiController -VM $Vm).Count -le $disk.Number) {
            Add-VMScsiController -VM $Vm
        }
        $attached = Add-VMHardDiskDrive -VM $Vm -ControllerType $disk.Controller -ControllerNumber $disk.Number -ControllerLocation $disk.Location -Path (Get-LocalPath -Relative $disk.Child) -Passthru
        if ($disk.Starts -and $Table.Generation -eq 2) {
            Set-VMFirmware -VM $Vm -FirstBootDevice $attached
        }
    }
    if ($Table.Generation -eq 2 -and $Table.SecureBoot) {
        Set-VMFirmware -VM $Vm -EnableSecureBoot On -SecureBootTemplate $Table.SecureBootTemplate
    } elseif ($Table.Generation -eq 2) {
        Set-VMFirmware -VM $Vm -EnableSecureBoot Off
    }
    $adapters = @(Get-VMNetworkAdapter -VM $Vm)
    for ($i = 0; $i -lt $Table.MacAddresses.Count; $i++) {
        if ($i -lt $adapters.Count) {
            Set-VMNetworkAdapter -VMNetworkAdapter $adapters[$i] -StaticMacAddress $Table.MacAddresses[$i]
        } else {
            Add-VMNetworkAdapter -VM $Vm -StaticMacAddress $Table.MacAddresses[$i]
        }
    }
}

function New-Machine {
    # Makes the VM if there is none, and its disks where they are missing; what failed half is taken away again.
    param($Vm)

    foreach ($name in 'disks', 'vm') {
        [IO.Directory]::CreateDirectory([IO.Path]::Combine($Here, $name)) | Out-Null
    }
    $made = @()
    $new = $null
    try {
        foreach ($disk in $Table.Disks) {
            $made += @(Add-Disk -Disk $disk)
        }
        if ($null -ne $Vm) {
            return $Vm
        }
        $new = New-VM -Name $Table.VmName -MemoryStartupBytes $Table.Memory -Generation $Table.Generation -NoVHD -Path ([IO.Path]::Combine($Here, 'vm'))
        [IO.File]::WriteAllText($IdFile, $new.Id.ToString())
        Set-Hardware -Vm $new
        return $new
    } catch {
        if ($null -ne $new) {
            Remove-VM -VM $new -Force -ErrorAction Continue
            [IO.File]::Delete($IdFile)
        }
        foreach ($path in $made) {
            Remove-Item -LiteralPath $path -Force -ErrorAction Continue
        }
        throw
    }
}

function Connect-Switch {
    param($Vm)

    if ($SwitchName) {
        Connect-VMNetworkAdapter -VMNetworkAdapter @(Get-VMNetworkAdapter -VM $Vm) -SwitchName $SwitchName
    }
}

function Start-Machine {
    Confirm-Place
    if ($Table.ProvedHost -and $env:COMPUTERNAME -ne $Table.ProvedHost) {
        throw "starting from the drive was proved on $($Table.ProvedHost), and this is $($env:COMPUTERNAME): make this folder anew with --via local, or with --via drive if you mean it"
    }
    $vm = Get-OwnVm
    if ($null -ne $vm -and $vm.State -eq 'Running') {
        Connect-Switch -Vm $vm
        Write-Host -Object "$($vm.Name) runs."
        return
    }
    if ($null -eq $vm -or $vm.State -eq 'Off') {
        $vm = New-Machine -Vm $vm
        if ($Table.Via -eq 'local') {
            [IO.File]::WriteAllText($LocalFile, $LocalText)
        }
    } elseif ($vm.State -ne 'Saved') {
        throw "$($vm.Name) is $($vm.State): see to it in Hyper-V Manager, then run this again"
    }
    Connect-Switch -Vm $vm
    Start-VM -VM $vm
    Write-Host -Object "$($vm.Name) is on; its screen: Hyper-V Manager, or vmconnect."
    if ($Table.Via -eq 'drive' -and -not [IO.File]::Exists($LocalFile)) {
        Write-Host -Object 'It needs the drive until it was put on complete local copies (-Action GoLocal).'
    }
}

function Set-LocalParents {
    $vm = Get-OwnVm
    if ($null -eq $vm) {
        throw 'there is no VM of this folder yet: run this without -Action GoLocal first'
    }
    if ([IO.File]::Exists($LocalFile)) {
        Write-Host -Object "$($vm.Name) is on its local copies already."
        return
    }
    if ($vm.State -notin 'Running', 'Paused', 'Off', 'Saved') {
        throw "$($vm.Name) is $($vm.State): wait until it runs or is off, then run this again"
    }
    foreach ($disk in $Table.Disks) {
        Confirm-Copy -Path (Get-LocalPath -Relative $disk.Copy) # all of them before one is touched
    }
    foreach ($disk in $Table.Disks) {
        $child = Get-LocalPath -Relative $disk.Child
        $copy = Get-LocalPath -Relative $disk.Copy
        # Never with -IgnoreIdMismatch: the copy is the same bytes as the drive's file, so the check must pass.
        if ($vm.State -in 'Running', 'Paused') {
            Set-VHD -Path $child -ParentPath $copy -LeafPath $child
        } else {
            Set-VHD -Path $child -ParentPath $copy
        }
        $now = [string] (Get-VHD -Path $child).ParentPath
        if (-not $now.EndsWith($disk.Copy, [StringComparison]::OrdinalIgnoreCase)) {
            throw "Hyper-V still tells $now for the parent of ${child}: keep the drive mounted"
        }
    }
    [IO.File]::WriteAllText($LocalFile, $LocalText)
    Write-Host -Object "$($vm.Name) is on its local copies; the drive is no longer needed. Keep this folder as it is."
}

try {
    if ($null -eq (Get-Command -Name 'New-VM' -ErrorAction SilentlyContinue)) {
        throw 'Hyper-V and its PowerShell module are not on here (Windows Features; Windows Home has none, and QEMU with WHPX runs the machine there: docs/windows.md)'
    }
    if ($Action -eq 'GoLocal') {
        Set-LocalParents
    } else {
        Start-Machine
    }
} catch {
    [Console]::Error.WriteLine("boot.ps1: $($_.Exception.Message)")
    exit 1
}
